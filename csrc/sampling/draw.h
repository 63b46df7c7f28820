// One token from one row of logits.
#pragma once

#include <stdint.h>

#include "memory.h"
#include "passes.h"

namespace splice::sampling {

// Values that turn a filter off: top_k 0, the others 1, min_p 0. A temperature of 0 is greedy.
struct Choice {
  double temperature = 1.0;
  double min_p = 0.0;
  int64_t top_k = 0;
  double typical_p = 1.0;
  double top_p = 1.0;
  uint64_t random = 0;  // 53 bits: the draw is at random / 2^53 of the mass left
};

constexpr int64_t NOT_FINITE = -1;  // the largest logit is NaN or infinite, or one is NaN

// Greedy takes the lowest id of the largest; otherwise min_p, top_k, typical_p and top_p,
// each over what the one before left, and a draw over the rest in ascending id.
int64_t draw(const Passes& passes, const float* logits, int64_t size, const Choice& choice, Memory& memory);

}  // namespace splice::sampling
