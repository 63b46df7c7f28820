// Natural logarithms of the model's own distribution.
#pragma once

#include <stdint.h>

#include <vector>

#include "passes.h"

namespace splice::sampling {

struct Logprobs {
  double logprob = 0.0;
  int64_t rank = 0;  // tokens that are strictly likelier, plus one
  std::vector<uint32_t> top_ids;  // likeliest first, ties by id
  std::vector<double> top_logprobs;
};

// Of `token`, and of the `num_top` likeliest. `largest` is room for blocks_of(size) numbers. False where a logit is not usable.
bool logprobs(const Passes& passes, const float* logits, int64_t size, uint32_t token, int64_t num_top, float* largest,
              Logprobs& out);

}  // namespace splice::sampling
