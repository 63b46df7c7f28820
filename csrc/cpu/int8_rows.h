// Activations as int8: every row in blocks of 32, each with its own scale.
//
// scale = m / 127 where m is the block's largest magnitude; a quant is x · (127 / m) rounded to the nearest integer, ties to even,
// so in [-127, 127]. A block whose m is under 2^-100 counts as zeros. Infinity and NaN cannot be hidden by a quant: a block that
// holds one has a NaN for a scale, and every output that reads it is NaN.
// Reads 128 bytes and writes 48 a block; about 60 instructions, under 15 ns on AVX2.
#pragma once

#include "kernels.h"
#include "words.h"

namespace {

using splice::cpu::Int8Block;

constexpr uint32_t MAGNITUDE = 0x7fffffffu;
constexpr uint32_t INFINITE = 0x7f800000u;
constexpr uint32_t SMALLEST = 0x0d800000u;  // 2^-100

#if defined(SPLICE_AVX512) || defined(SPLICE_AVX2)

SPLICE_INLINE uint32_t largest_word(__m256i a) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

// Bytes i of eight words from four vectors of eight small integers, and the sums of bytes 0 and 1 and of bytes 2 and 3.
SPLICE_INLINE void store_quants(Int8Block* out, __m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i byte = _mm256_set1_epi32(255);
  const __m256i low = _mm256_or_si256(_mm256_and_si256(a, byte), _mm256_slli_epi32(_mm256_and_si256(b, byte), 8));
  const __m256i high = _mm256_or_si256(_mm256_slli_epi32(_mm256_and_si256(c, byte), 16), _mm256_slli_epi32(d, 24));
  const __m256i quants = _mm256_or_si256(low, high);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out->quants), quants);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), quants);
  __m128i sums = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0x4e));
  sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0xb1));
  const int32_t both = _mm_cvtsi128_si32(sums);
  out->half_sums[0] = static_cast<int16_t>(both & 0xffff);
  out->half_sums[1] = static_cast<int16_t>(both >> 16);
}

#if defined(SPLICE_AVX512)
SPLICE_INLINE uint32_t largest_magnitude(F16 a, F16 b) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(MAGNITUDE));
  const __m512i m = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a.v), mask),
                                     _mm512_and_si512(_mm512_castps_si512(b.v), mask));
  return largest_word(_mm256_max_epi32(_mm512_castsi512_si256(m), _mm512_extracti64x4_epi64(m, 1)));
}
SPLICE_INLINE void round_quants(Int8Block* out, F16 a, F16 b) {
  const __m512i x = _mm512_cvtps_epi32(a.v), y = _mm512_cvtps_epi32(b.v);
  store_quants(out, _mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1), _mm512_castsi512_si256(y),
               _mm512_extracti64x4_epi64(y, 1));
}
#else
SPLICE_INLINE uint32_t largest_magnitude(F16 a, F16 b) {
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(MAGNITUDE));
  const auto magnitude = [mask](__m256 v) { return _mm256_and_si256(_mm256_castps_si256(v), mask); };
  return largest_word(_mm256_max_epi32(_mm256_max_epi32(magnitude(a.lo), magnitude(a.hi)),
                                       _mm256_max_epi32(magnitude(b.lo), magnitude(b.hi))));
}
SPLICE_INLINE void round_quants(Int8Block* out, F16 a, F16 b) {
  store_quants(out, _mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi), _mm256_cvtps_epi32(b.lo),
               _mm256_cvtps_epi32(b.hi));
}
#endif

#else

SPLICE_INLINE uint32_t largest_magnitude(F16 a, F16 b) {
  uint32_t largest = 0;
  for (int i = 0; i < 32; ++i) {
    const uint32_t magnitude = as_bits(i < 16 ? a.v[i] : b.v[i - 16]) & MAGNITUDE;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}
SPLICE_INLINE void round_quants(Int8Block* out, F16 a, F16 b) {
  constexpr float MAGIC = 12582912.0f;  // 1.5·2^23: in the sum, the low mantissa bits are the nearest integer
  out->half_sums[0] = out->half_sums[1] = 0;
  for (int d = 0; d < 32; ++d) {
    const float x = d < 16 ? a.v[d] : b.v[d - 16];
    const auto quant = static_cast<int8_t>(as_bits(x + MAGIC) - as_bits(MAGIC));
    out->quants[d % 8 * 4 + d / 8] = quant;
    out->half_sums[d / 16] = static_cast<int16_t>(out->half_sums[d / 16] + quant);
  }
}

#endif

// One block from its 32 values.
SPLICE_INLINE void quantize_block(Int8Block* out, F16 a, F16 b) {
  const uint32_t largest = largest_magnitude(a, b);
  float scale = 0.0f, inverse = 0.0f;
  if (largest >= INFINITE) {
    a = b = zero();
    scale = as_float(0x7fc00000u);
  } else if (largest < SMALLEST) {
    a = b = zero();
  } else {
    scale = as_float(largest) / 127.0f;
    inverse = 127.0f / as_float(largest);
  }
  round_quants(out, mul(a, splat(inverse)), mul(b, splat(inverse)));
  out->sum = out->half_sums[0] + out->half_sums[1];
  out->scale = scale;
  out->scaled_sum = scale * static_cast<float>(out->sum);
}

SPLICE_INLINE void quantize_row(Int8Block* out, const float* x, int64_t k) {
  for (int64_t d = 0; d < k; d += splice::cpu::INT8_DEPTH, ++out) quantize_block(out, load(x + d), load(x + d + LANES));
}

// Rows first..last of x [rows, k] into [rows][k/32] blocks.
void quantize_rows(const splice::cpu::QuantizeArgs& args, int64_t first, int64_t last) {
  const int64_t blocks = args.k / splice::cpu::INT8_DEPTH;
  for (int64_t row = first; row < last; ++row) quantize_row(args.out + row * blocks, args.x + row * args.x_stride, args.k);
}

}  // namespace
