// The tokens still in question, in ascending id, and the choice of a leading part of them in some other order.
#pragma once

#include <stdint.h>

#include <vector>

#include "passes.h"

namespace splice::sampling {

struct Candidates {
  std::vector<uint32_t> ids;
  std::vector<float> logits;
  std::vector<uint64_t> units;

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
  uint64_t total() const;
};

// A row and what is known of it; borrowed.
struct Row {
  const Passes& passes;
  const float* logits;
  int64_t size;
  const float* largest;
  Scale scale;
};

// Tokens with a logit of at least `least`, which −inf never is.
Candidates gather(const Row& row, float least);
// A logit that the `count` largest of the row all reach; −inf where that is not cheap to say.
float bound_of_largest(const Row& row, int64_t count);

// Orders by rising key, ties by rising id, and keeps the shortest leading part whose amounts reach `target`, at least one candidate
// and all where they never do. `keys` and `amounts` go with the candidates; an empty `amounts` counts each as one.
void keep_leading(Candidates& candidates, const std::vector<double>& keys, const std::vector<uint64_t>& amounts, uint64_t target);

// The one whose share of the units, laid end to end in ascending id, holds unit `point`.
uint32_t at_unit(const Candidates& candidates, uint64_t point);

}  // namespace splice::sampling
