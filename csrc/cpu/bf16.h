// Rounding to bf16 in place: nearest, ties to even, NaN stays NaN. The result is still fp32, with the low half of its bits zero.
#pragma once

#include "vec.h"

namespace {

#if defined(SPLICE_AVX512)

SPLICE_INLINE F16 rounded_to_bf16(F16 a) {
  const __m512i bits = _mm512_castps_si512(a.v), high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
  const __mmask16 strange = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_mask_blend_epi32(strange, up, quiet), high))};
}

#elif defined(SPLICE_AVX2)

SPLICE_INLINE __m256 rounded_to_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a), high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x00400000)));
  const __m256 strange = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  return _mm256_and_ps(_mm256_blendv_ps(_mm256_castsi256_ps(up), quiet, strange), _mm256_castsi256_ps(high));
}
SPLICE_INLINE F16 rounded_to_bf16(F16 a) { return {rounded_to_bf16(a.lo), rounded_to_bf16(a.hi)}; }

#else

SPLICE_INLINE F16 rounded_to_bf16(F16 a) {
  for (int i = 0; i < LANES; ++i) a.v[i] = from_bf16(to_bf16(a.v[i]));
  return a;
}

#endif

// [rows][k] of x, rows x_stride apart, rounded and closed up.
SPLICE_INLINE void round_rows_to_bf16(float* y, const float* x, int64_t x_stride, int64_t rows, int64_t k) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride, y += k) {
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) store(y + i, rounded_to_bf16(load(x + i)));
    for (; i < k; ++i) y[i] = from_bf16(to_bf16(x[i]));
  }
}

}  // namespace
