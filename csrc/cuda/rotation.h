// Pairs of elements that are normed and turned. Rotation as in RoFormer (arXiv 2104.09864) in the halves order of GPT-NeoX, two
// products and a sum, each rounded to float32.
#pragma once

#include "rows.h"

namespace splice::cuda {

// Word `word` of a row, times 1 / sqrt(mean + eps) and its weights, rounded where norm.cu rounds.
SPLICE_DEVICE uint32_t weighted(uint32_t x, float inverse, const void* norm, int64_t word, bool is_float32) {
  if (is_float32) {
    const float* weight = static_cast<const float*>(norm) + 2 * word;
    return to_bf16_pair(product(product(low_of(x), inverse), weight[0]), product(product(high_of(x), inverse), weight[1]));
  }
  const uint32_t weight = static_cast<const uint32_t*>(norm)[word];
  const uint32_t scaled = to_bf16_pair(product(low_of(x), inverse), product(high_of(x), inverse));
  return to_bf16_pair(product(low_of(scaled), low_of(weight)), product(high_of(scaled), high_of(weight)));
}

SPLICE_DEVICE float squares_of(uint32_t x, float total) {
  return fused(high_of(x), high_of(x), fused(low_of(x), low_of(x), total));
}

// a·c − b·s and b·c + a·s of two neighbours.
SPLICE_DEVICE void rotate(uint32_t& a, uint32_t& b, const float* c, const float* s) {
  const float a0 = low_of(a), a1 = high_of(a), b0 = low_of(b), b1 = high_of(b);
  a = to_bf16_pair(sum(product(a0, c[0]), -product(b0, s[0])), sum(product(a1, c[1]), -product(b1, s[1])));
  b = to_bf16_pair(sum(product(b0, c[0]), product(a0, s[0])), sum(product(b1, c[1]), product(a1, s[1])));
}

}  // namespace splice::cuda
