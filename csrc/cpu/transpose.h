// Rows of the cache as fp32, and keys turned so that positions lie in lanes.
#pragma once

#include "fp8.h"
#include "kv_cache.h"
#include "vec.h"

namespace {

using splice::cpu::kv_head;
using splice::cpu::kv_plane_bytes;

SPLICE_INLINE float element(const float* row, int64_t i) { return row[i]; }
SPLICE_INLINE float element(const uint16_t* row, int64_t i) { return from_bf16(row[i]); }
SPLICE_INLINE float element(const int8_t* row, int64_t i) { return static_cast<float>(row[i]); }
SPLICE_INLINE F16 elements(const float* row) { return load(row); }
SPLICE_INLINE F16 elements(const uint16_t* row) { return load_bf16(row); }
SPLICE_INLINE F16 elements(const int8_t* row) { return load_int8(row); }

#if defined(SPLICE_AVX512) || defined(SPLICE_AVX2)

SPLICE_INLINE __m256 eight(const float* p) { return _mm256_loadu_ps(p); }
SPLICE_INLINE __m256 eight(const uint16_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
SPLICE_INLINE __m256 eight(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// dst[i·16 + j] = rows[j][d + i], i and j below 8.
template <class Element>
SPLICE_INLINE void transpose_eight(const Element* const* rows, int64_t d, float* dst) {
  __m256 pairs[8], quads[8];
  for (int j = 0; j < 8; j += 2) {
    const __m256 a = eight(rows[j] + d), b = eight(rows[j + 1] + d);
    pairs[j] = _mm256_unpacklo_ps(a, b);
    pairs[j + 1] = _mm256_unpackhi_ps(a, b);
  }
  for (int j = 0; j < 8; j += 4)
    for (int i = 0; i < 2; ++i) {
      quads[j + 2 * i] = _mm256_shuffle_ps(pairs[j + i], pairs[j + i + 2], 0x44);
      quads[j + 2 * i + 1] = _mm256_shuffle_ps(pairs[j + i], pairs[j + i + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(dst + i * LANES, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20));
    _mm256_storeu_ps(dst + (i + 4) * LANES, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31));
  }
}

#else

template <class Element>
SPLICE_INLINE void transpose_eight(const Element* const* rows, int64_t d, float* dst) {
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j) dst[i * LANES + j] = element(rows[j], d + i);
}

#endif

// 8 rows of head_dim to as many lanes of a panel [head_dim][16].
template <class Element>
SPLICE_INLINE void transpose_rows(const Element* const* rows, int64_t head_dim, float* lanes) {
  int64_t d = 0;
  for (; d + 8 <= head_dim; d += 8) transpose_eight(rows, d, lanes + d * LANES);
  for (; d < head_dim; ++d)
    for (int64_t i = 0; i < 8; ++i) lanes[d * LANES + i] = element(rows[i], d);
}

// 32 rows of head_dim to two panels [2][dim][16].
template <class Element>
SPLICE_INLINE void transpose_keys(const Element* const (&rows)[32], int64_t head_dim, float* dst, int64_t dim) {
  for (int64_t j = 0; j < 32; j += 8) transpose_rows(rows + j, head_dim, dst + j / LANES * LANES * dim + j % LANES);
}

}  // namespace
