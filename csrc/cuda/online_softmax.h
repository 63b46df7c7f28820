// Softmax over keys met a part at a time (Milakov & Gimelshein 2018; Dao et al. 2022), and how parts that were computed apart are put
// together. Scores are in units of log2 e, so that a weight is a power of two.
//
// A part is a maximum m, a sum l of 2^(score − m), and an accumulator of 2^(score − m)·value. A part without keys has m = −inf and
// zeros, and adding it changes no bit.
#pragma once

#include "platform.h"

namespace splice::cuda {

constexpr float NEGATIVE_INFINITY = -__builtin_huge_valf();

// How two sums join under one maximum: what was counted against `own` and `other` is multiplied by these.
struct Shares {
  float maximum, own, other;
};

SPLICE_DEVICE Shares joined(float own, float other) {
  const float maximum = other > own ? other : own;
  const float level = maximum == NEGATIVE_INFINITY ? 0.0f : maximum;
  return {maximum, power_of_two(sum(own, -level)), power_of_two(sum(other, -level))};
}

// A running total and the next part, parts in ascending order of their keys.
SPLICE_DEVICE float merged(float total, float part, const Shares& shares) { return fused(part, shares.other, product(total, shares.own)); }

}  // namespace splice::cuda
