// F16: sixteen fp32 lanes, the same on every instruction set (one zmm, two ymm, or an array).
//
// Kernels are written once in terms of F16. Since lanes, not registers, define the arithmetic, results are equal bit for bit
// whatever the width of the machine. `fma` always rounds once; nothing here may be contracted or reassociated.
// This file is included by translation units compiled with different flags: everything is internal to the including unit, and
// nothing from the standard library is called, so that no inline function can leak from one instruction set into another.
#pragma once

#include <stdint.h>
#if defined(SPLICE_AVX512) || defined(SPLICE_AVX2)
#include <immintrin.h>
#endif

#if defined(SPLICE_EMULATED)  // for tests (emulation/): calls compile in a fifth of the time
#define SPLICE_INLINE static inline
#define SPLICE_MEMBER inline
#else
#define SPLICE_INLINE static inline __attribute__((always_inline))
#define SPLICE_MEMBER inline __attribute__((always_inline))
#endif

namespace {

constexpr int64_t LANES = 16;

SPLICE_INLINE float as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
SPLICE_INLINE uint32_t as_bits(float value) { return __builtin_bit_cast(uint32_t, value); }

// Round to nearest even; NaN stays NaN.
SPLICE_INLINE uint16_t to_bf16(float value) {
  uint32_t bits = as_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
SPLICE_INLINE float from_bf16(uint16_t value) { return as_float(static_cast<uint32_t>(value) << 16); }

#if defined(SPLICE_AVX512)

struct F16 {
  __m512 v;
};
SPLICE_INLINE F16 zero() { return {_mm512_setzero_ps()}; }
SPLICE_INLINE F16 splat(float x) { return {_mm512_set1_ps(x)}; }
SPLICE_INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
SPLICE_INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
SPLICE_INLINE F16 add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
SPLICE_INLINE F16 sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
SPLICE_INLINE F16 mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
SPLICE_INLINE F16 div(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
SPLICE_INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// a > b ? a : b: a NaN in b survives.
SPLICE_INLINE F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
SPLICE_INLINE F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
SPLICE_INLINE F16 pow2_bits(F16 z) {
  return {_mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(z.v), 23), _mm512_set1_epi32(0x3f800000)))};
}
SPLICE_INLINE F16 load_bf16(const uint16_t* p) {
  __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
SPLICE_INLINE void load_bf16_pair(const uint32_t* p, F16& even, F16& odd) {
  __m512i raw = _mm512_loadu_si512(p);
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
// Sixteen fp16, exactly.
SPLICE_INLINE F16 load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
SPLICE_INLINE F16 load_int8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// Each word's bits under MASK (its top bit is clear) as a number.
template <uint32_t MASK>
SPLICE_INLINE F16 load_masked(const uint32_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(MASK))))};
}
SPLICE_INLINE F16 load_high_nibble(const uint32_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_loadu_si512(p), 28))};
}

#elif defined(SPLICE_AVX2)

struct F16 {
  __m256 lo, hi;
};
SPLICE_INLINE F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
SPLICE_INLINE F16 splat(float x) {
  __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
SPLICE_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SPLICE_INLINE void store(float* p, F16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
SPLICE_INLINE F16 add(F16 a, F16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
SPLICE_INLINE F16 sub(F16 a, F16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
SPLICE_INLINE F16 mul(F16 a, F16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
SPLICE_INLINE F16 div(F16 a, F16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
SPLICE_INLINE F16 fma(F16 a, F16 b, F16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SPLICE_INLINE F16 max(F16 a, F16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
SPLICE_INLINE F16 min(F16 a, F16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
SPLICE_INLINE __m256 pow2_half(__m256 z) {
  __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(z), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(0x3f800000)));
}
SPLICE_INLINE F16 pow2_bits(F16 z) { return {pow2_half(z.lo), pow2_half(z.hi)}; }
SPLICE_INLINE __m256 widen_half(const uint16_t* p) {
  __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
SPLICE_INLINE F16 load_bf16(const uint16_t* p) { return {widen_half(p), widen_half(p + 8)}; }
SPLICE_INLINE void load_bf16_pair(const uint32_t* p, F16& even, F16& odd) {
  __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8));
  __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(lo, mask)), _mm256_castsi256_ps(_mm256_and_si256(hi, mask))};
}
SPLICE_INLINE F16 load_half(const uint16_t* p) {
  const __m128i* raw = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(raw)), _mm256_cvtph_ps(_mm_loadu_si128(raw + 1))};
}
SPLICE_INLINE F16 load_int8(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))))};
}
template <uint32_t MASK>
SPLICE_INLINE F16 load_masked(const uint32_t* p) {
  const __m256i* raw = reinterpret_cast<const __m256i*>(p);
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(MASK));
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_loadu_si256(raw), mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_loadu_si256(raw + 1), mask))};
}
SPLICE_INLINE F16 load_high_nibble(const uint32_t* p) {
  const __m256i* raw = reinterpret_cast<const __m256i*>(p);
  return {_mm256_cvtepi32_ps(_mm256_srli_epi32(_mm256_loadu_si256(raw), 28)),
          _mm256_cvtepi32_ps(_mm256_srli_epi32(_mm256_loadu_si256(raw + 1), 28))};
}

#else

// The compiler's own vectors: it makes of them whatever the machine has.
typedef float V16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));

struct F16 {
  V16 v;
};
SPLICE_INLINE F16 splat(float x) { return {V16{} + x}; }
SPLICE_INLINE F16 zero() { return {V16{}}; }
SPLICE_INLINE F16 load(const float* p) {
  F16 r;
  __builtin_memcpy(&r.v, p, sizeof r.v);
  return r;
}
SPLICE_INLINE void store(float* p, F16 a) { __builtin_memcpy(p, &a.v, sizeof a.v); }
SPLICE_INLINE F16 add(F16 a, F16 b) { return {a.v + b.v}; }
SPLICE_INLINE F16 sub(F16 a, F16 b) { return {a.v - b.v}; }
SPLICE_INLINE F16 mul(F16 a, F16 b) { return {a.v * b.v}; }
SPLICE_INLINE F16 div(F16 a, F16 b) { return {a.v / b.v}; }
SPLICE_INLINE F16 max(F16 a, F16 b) { return {a.v > b.v ? a.v : b.v}; }
SPLICE_INLINE F16 min(F16 a, F16 b) { return {a.v < b.v ? a.v : b.v}; }
#define SPLICE_EACH(expression)                       \
  F16 r;                                              \
  _Pragma("GCC unroll 1") for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
  return r
static F16 fma(F16 a, F16 b, F16 c) { SPLICE_EACH(__builtin_fmaf(a.v[i], b.v[i], c.v[i])); }
SPLICE_INLINE F16 pow2_bits(F16 z) {
  return {__builtin_bit_cast(V16, (__builtin_bit_cast(U16, z.v) << 23) + 0x3f800000u)};
}
SPLICE_INLINE F16 load_bf16(const uint16_t* p) { SPLICE_EACH(from_bf16(p[i])); }
SPLICE_INLINE void load_bf16_pair(const uint32_t* p, F16& even, F16& odd) {
  U16 raw;
  __builtin_memcpy(&raw, p, sizeof raw);
  even.v = __builtin_bit_cast(V16, raw << 16);
  odd.v = __builtin_bit_cast(V16, raw & 0xffff0000u);
}
SPLICE_INLINE float from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return as_float(as_bits(as_float(magnitude << 13) * as_float(0x77800000u)) | sign);
}
SPLICE_INLINE F16 load_half(const uint16_t* p) { SPLICE_EACH(from_half(p[i])); }
SPLICE_INLINE F16 load_int8(const int8_t* p) { SPLICE_EACH(static_cast<float>(p[i])); }
template <uint32_t MASK>
SPLICE_INLINE F16 load_masked(const uint32_t* p) { SPLICE_EACH(static_cast<float>(p[i] & MASK)); }
SPLICE_INLINE F16 load_high_nibble(const uint32_t* p) { SPLICE_EACH(static_cast<float>(p[i] >> 28)); }
#undef SPLICE_EACH

#endif

// The first n lanes, zero in the others: never reads past p + n.
SPLICE_INLINE F16 load_first(const float* p, int64_t n) {
  alignas(64) float lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
SPLICE_INLINE void store_first(float* p, F16 a, int64_t n) {
  alignas(64) float lanes[16];
  store(lanes, a);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// The largest lane; with a NaN among them, any of them.
#if defined(SPLICE_AVX512) || defined(SPLICE_AVX2)
SPLICE_INLINE float largest_of_eight(__m256 a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
#endif
#if defined(SPLICE_AVX512)
SPLICE_INLINE float largest(F16 a) {
  return largest_of_eight(_mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)));
}
#elif defined(SPLICE_AVX2)
SPLICE_INLINE float largest(F16 a) { return largest_of_eight(_mm256_max_ps(a.lo, a.hi)); }
#else
SPLICE_INLINE float largest(F16 a) {
  float best = a.v[0];
  for (int i = 1; i < 16; ++i) best = a.v[i] > best ? a.v[i] : best;
  return best;
}
#endif

// The one reduction tree: lanes (i, i+8), then (i, i+4), (i, i+2), (i, i+1).
SPLICE_INLINE float sum(F16 a) {
  alignas(64) float lanes[16];
  store(lanes, a);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] + lanes[i + width];
  return lanes[0];
}

// e^x to about 1 ulp: x = n·ln 2 + r, |r| ≤ ln 2 / 2, Taylor series of degree 7 (remainder 5e-9), times 2^n through the
// exponent bits. Own code and not libm's, so that every machine agrees. Clamped to [-87, 88]: never denormal, never infinite.
SPLICE_INLINE F16 exp(F16 x) {
  x = min(splat(88.0f), max(splat(-87.0f), x));
  const F16 magic = splat(12582912.0f);  // 1.5·2^23: the sum's low mantissa bits are the nearest integer
  F16 z = fma(x, splat(1.44269504f), magic);
  F16 n = sub(z, magic);
  F16 r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  F16 p = splat(1.0f / 5040.0f);
  p = fma(p, r, splat(1.0f / 720.0f));
  p = fma(p, r, splat(1.0f / 120.0f));
  p = fma(p, r, splat(1.0f / 24.0f));
  p = fma(p, r, splat(1.0f / 6.0f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return mul(p, pow2_bits(z));
}

// tanh x = (1 - t) / (1 + t) · sign x with t = e^(-2|x|): off by at most 1e-7, absolutely.
SPLICE_INLINE F16 tanh(F16 x) {
  x = min(splat(40.0f), max(splat(-40.0f), x));
  const F16 magnitude = max(x, sub(zero(), x)), one = splat(1.0f);
  const F16 t = exp(mul(splat(-2.0f), magnitude));
  const F16 value = div(sub(one, t), add(one, t));
  return mul(value, div(x, max(splat(1e-37f), magnitude)));
}

}  // namespace
