// E4M3 numbers of 8 bits (OCP 8-bit Floating Point Specification, 2023: bias 7, largest 448, no infinity) as caches hold them.
//
// Written: x / scale, rounded to nearest even; what is written is finite and at most 448. Read: as the fp16 number with the same
// exponent and mantissa bits, which is the value / 256 (fp16's bias is 8 more), subnormals included; who multiplies by the
// scale makes up for that, so that every product by a power of two is exact.
#pragma once

#include "vec.h"

namespace {

struct Fp8 {
  uint8_t bits;
};
constexpr float FP8_LARGEST = 448.0f;
constexpr float FP8_UNIT = 256.0f;  // what a number that was read must be multiplied with

// |x| ≤ 464: the nearest number, ties to even.
SPLICE_INLINE Fp8 to_fp8(float x) {
  const uint32_t bits = as_bits(x), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  constexpr uint32_t LEAST_NORMAL = 0x3c800000u;  // 2^-6
  uint32_t code;
  if (magnitude < LEAST_NORMAL) {
    constexpr float MAGIC = 16384.0f;  // 2^23 units of 2^-9: in the sum, the low mantissa bits count the nearest number of units
    code = as_bits(as_float(magnitude) + MAGIC) - as_bits(MAGIC);
  } else {
    code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);  // fp32's bias is 120 more
  }
  return {static_cast<uint8_t>(sign | code)};
}

SPLICE_INLINE uint16_t half_bits(Fp8 x) {
  return static_cast<uint16_t>((x.bits & 0x80u) << 8 | (x.bits & 0x7fu) << 7);
}

#if defined(SPLICE_AVX512) || defined(SPLICE_AVX2)

SPLICE_INLINE __m256 eight(const Fp8* p) {
  // Sign-extended and shifted, a byte has its sign once too often in bit 14.
  const __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 7);
  return _mm256_cvtph_ps(_mm_and_si128(wide, _mm_set1_epi16(static_cast<int16_t>(0xbfff))));
}
SPLICE_INLINE float element(const Fp8* row, int64_t i) { return _cvtsh_ss(half_bits(row[i])); }
#if defined(SPLICE_AVX512)
SPLICE_INLINE F16 elements(const Fp8* p) {
  const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 7);
  return {_mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16(static_cast<int16_t>(0xbfff))))};
}
#else
SPLICE_INLINE F16 elements(const Fp8* p) { return {eight(p), eight(p + 8)}; }
#endif

#else

SPLICE_INLINE float element(const Fp8* row, int64_t i) { return from_half(half_bits(row[i])); }
SPLICE_INLINE F16 elements(const Fp8* p) {
  uint16_t halves[LANES];
  for (int64_t i = 0; i < LANES; ++i) halves[i] = half_bits(p[i]);
  return load_half(halves);
}

#endif

}  // namespace
