// AVX-512 F, BW, DQ and VL as far as the kernels use them: what AVX2 has, half by half, and what it has not, lane by lane.
#pragma once

#include <stdint.h>

namespace emulation {

// Calls, not inlined: compilers take minutes over a kernel of 64-byte vectors without registers for them.
#define EMULATED [[maybe_unused]] static __attribute__((noinline))
#define EMULATED_INLINE static inline __attribute__((always_inline))

// The two halves of a register.
struct Floats {
  __m256 half[2];
};
struct Integers {
  __m256i half[2];
};
EMULATED_INLINE Floats halves(__m512 a) { return __builtin_bit_cast(Floats, a); }
EMULATED_INLINE Integers halves(__m512i a) { return __builtin_bit_cast(Integers, a); }
EMULATED_INLINE __m512 whole(Floats a) { return __builtin_bit_cast(__m512, a); }
EMULATED_INLINE __m512i whole(Integers a) { return __builtin_bit_cast(__m512i, a); }
EMULATED_INLINE __m512 whole(__m256 low, __m256 high) { return whole(Floats{{low, high}}); }
EMULATED_INLINE __m512i whole(__m256i low, __m256i high) { return whole(Integers{{low, high}}); }

// NAME(a) or NAME(a, b), each half by HALF.
#define EMULATED_UNARY(NAME, RESULT, OPERAND, HALF)       \
  EMULATED RESULT NAME(OPERAND a) {                       \
    const auto x = halves(a);                             \
    return whole(HALF(x.half[0]), HALF(x.half[1]));       \
  }
#define EMULATED_BINARY(NAME, TYPE, HALF)                                     \
  EMULATED TYPE NAME(TYPE a, TYPE b) {                                        \
    const auto x = halves(a), y = halves(b);                                  \
    return whole(HALF(x.half[0], y.half[0]), HALF(x.half[1], y.half[1]));     \
  }
#define EMULATED_SHIFT(NAME, HALF)                                  \
  EMULATED __m512i NAME(__m512i a, unsigned count) {                \
    const auto x = halves(a);                                       \
    const int n = static_cast<int>(count);                          \
    return whole(HALF(x.half[0], n), HALF(x.half[1], n));           \
  }

EMULATED_BINARY(add_ps, __m512, _mm256_add_ps)
EMULATED_BINARY(sub_ps, __m512, _mm256_sub_ps)
EMULATED_BINARY(mul_ps, __m512, _mm256_mul_ps)
EMULATED_BINARY(div_ps, __m512, _mm256_div_ps)
EMULATED_BINARY(max_ps, __m512, _mm256_max_ps)
EMULATED_BINARY(min_ps, __m512, _mm256_min_ps)
EMULATED_BINARY(and_si512, __m512i, _mm256_and_si256)
EMULATED_BINARY(or_si512, __m512i, _mm256_or_si256)
EMULATED_BINARY(xor_si512, __m512i, _mm256_xor_si256)
EMULATED_BINARY(add_epi32, __m512i, _mm256_add_epi32)
EMULATED_BINARY(sub_epi32, __m512i, _mm256_sub_epi32)
EMULATED_BINARY(mullo_epi32, __m512i, _mm256_mullo_epi32)
EMULATED_BINARY(max_epi32, __m512i, _mm256_max_epi32)
EMULATED_BINARY(add_epi16, __m512i, _mm256_add_epi16)
EMULATED_BINARY(madd_epi16, __m512i, _mm256_madd_epi16)
EMULATED_BINARY(maddubs_epi16, __m512i, _mm256_maddubs_epi16)
EMULATED_BINARY(shuffle_epi8, __m512i, _mm256_shuffle_epi8)
EMULATED_UNARY(abs_epi8, __m512i, __m512i, _mm256_abs_epi8)
EMULATED_UNARY(cvtepi32_ps, __m512, __m512i, _mm256_cvtepi32_ps)
EMULATED_UNARY(cvtps_epi32, __m512i, __m512, _mm256_cvtps_epi32)
EMULATED_SHIFT(slli_epi32, _mm256_slli_epi32)
EMULATED_SHIFT(srli_epi32, _mm256_srli_epi32)
EMULATED_SHIFT(srai_epi32, _mm256_srai_epi32)

EMULATED __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const auto x = halves(a), y = halves(b), z = halves(c);
  return whole(_mm256_fmadd_ps(x.half[0], y.half[0], z.half[0]), _mm256_fmadd_ps(x.half[1], y.half[1], z.half[1]));
}

EMULATED __m512 set1_ps(float x) { return whole(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
EMULATED __m512i set1_epi32(int x) { return whole(_mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
EMULATED __m512i broadcast_i32x4(__m128i x) { return whole(_mm256_broadcastsi128_si256(x), _mm256_broadcastsi128_si256(x)); }
EMULATED __m512 setzero_ps() { return set1_ps(0.0f); }
EMULATED __m512i setzero_si512() { return set1_epi32(0); }

EMULATED __m512 loadu_ps(const void* p) {
  const float* x = static_cast<const float*>(p);
  return whole(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8));
}
EMULATED void storeu_ps(void* p, __m512 a) {
  float* x = static_cast<float*>(p);
  _mm256_storeu_ps(x, halves(a).half[0]);
  _mm256_storeu_ps(x + 8, halves(a).half[1]);
}
EMULATED __m512i loadu_si512(const void* p) {
  const __m256i* x = static_cast<const __m256i*>(p);
  return whole(_mm256_loadu_si256(x), _mm256_loadu_si256(x + 1));
}
EMULATED void storeu_si512(void* p, __m512i a) {
  __m256i* x = static_cast<__m256i*>(p);
  _mm256_storeu_si256(x, halves(a).half[0]);
  _mm256_storeu_si256(x + 1, halves(a).half[1]);
}

EMULATED __m512 castsi512_ps(__m512i a) { return __builtin_bit_cast(__m512, a); }
EMULATED __m512i castps_si512(__m512 a) { return __builtin_bit_cast(__m512i, a); }
EMULATED __m256i castsi512_si256(__m512i a) { return halves(a).half[0]; }
EMULATED __m256 castps512_ps256(__m512 a) { return halves(a).half[0]; }
EMULATED __m256 extractf32x8_ps(__m512 a, int which) { return halves(a).half[which & 1]; }
EMULATED __m256i extracti64x4_epi64(__m512i a, int which) { return halves(a).half[which & 1]; }

EMULATED __m512i cvtepu16_epi32(__m256i a) {
  return whole(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)));
}
EMULATED __m512i cvtepi8_epi16(__m256i a) {
  return whole(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(a)), _mm256_cvtepi8_epi16(_mm256_extracti128_si256(a, 1)));
}
EMULATED __m512i cvtepi8_epi32(__m128i a) {
  return whole(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)));
}
EMULATED __m512i cvtepu8_epi32(__m128i a) {
  return whole(_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8)));
}
EMULATED __m512 cvtph_ps(__m256i a) {
  return whole(_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}

// Bit i: the sign of byte i.
EMULATED uint64_t movepi8_mask(__m512i a) {
  const auto x = halves(a);
  const auto low = static_cast<uint32_t>(_mm256_movemask_epi8(x.half[0]));
  const auto high = static_cast<uint32_t>(_mm256_movemask_epi8(x.half[1]));
  return low | static_cast<uint64_t>(high) << 32;
}
EMULATED __m512i mask_sub_epi8(__m512i source, uint64_t mask, __m512i a, __m512i b) {
  typedef uint8_t Bytes __attribute__((vector_size(64)));
  Bytes out = __builtin_bit_cast(Bytes, source);
  const Bytes x = __builtin_bit_cast(Bytes, a), y = __builtin_bit_cast(Bytes, b);
  for (int i = 0; i < 64; ++i)
    if (mask >> i & 1u) out[i] = static_cast<uint8_t>(x[i] - y[i]);
  return __builtin_bit_cast(__m512i, out);
}

// Bit i: lane i of a or of b is NaN, the one comparison that is asked for.
EMULATED uint16_t cmp_ps_mask(__m512 a, __m512 b, int comparison) {
  if (comparison != _CMP_UNORD_Q) __builtin_trap();
  const auto x = halves(a), y = halves(b);
  const auto low = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x.half[0], y.half[0], _CMP_UNORD_Q)));
  const auto high = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x.half[1], y.half[1], _CMP_UNORD_Q)));
  return static_cast<uint16_t>(low | high << 8);
}
// Lane i of b where bit i is set, else of a.
EMULATED __m512i mask_blend_epi32(uint16_t mask, __m512i a, __m512i b) {
  typedef uint32_t Words __attribute__((vector_size(64)));
  Words out = __builtin_bit_cast(Words, a);
  const Words y = __builtin_bit_cast(Words, b);
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1u) out[i] = y[i];
  return __builtin_bit_cast(__m512i, out);
}

#undef EMULATED_UNARY
#undef EMULATED_BINARY
#undef EMULATED_SHIFT

}  // namespace emulation

// Some of the compiler's are macros already.
#undef _mm512_cmp_ps_mask
#undef _mm512_extractf32x8_ps
#undef _mm512_extracti64x4_epi64
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32
#undef _mm512_srai_epi32
#define _mm512_abs_epi8 emulation::abs_epi8
#define _mm512_add_epi16 emulation::add_epi16
#define _mm512_add_epi32 emulation::add_epi32
#define _mm512_add_ps emulation::add_ps
#define _mm512_and_si512 emulation::and_si512
#define _mm512_broadcast_i32x4 emulation::broadcast_i32x4
#define _mm512_castps512_ps256 emulation::castps512_ps256
#define _mm512_castps_si512 emulation::castps_si512
#define _mm512_castsi512_ps emulation::castsi512_ps
#define _mm512_castsi512_si256 emulation::castsi512_si256
#define _mm512_cmp_ps_mask emulation::cmp_ps_mask
#define _mm512_cvtepi32_ps emulation::cvtepi32_ps
#define _mm512_cvtepi8_epi16 emulation::cvtepi8_epi16
#define _mm512_cvtepi8_epi32 emulation::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 emulation::cvtepu16_epi32
#define _mm512_cvtepu8_epi32 emulation::cvtepu8_epi32
#define _mm512_cvtph_ps emulation::cvtph_ps
#define _mm512_cvtps_epi32 emulation::cvtps_epi32
#define _mm512_div_ps emulation::div_ps
#define _mm512_extractf32x8_ps emulation::extractf32x8_ps
#define _mm512_extracti64x4_epi64 emulation::extracti64x4_epi64
#define _mm512_fmadd_ps emulation::fmadd_ps
#define _mm512_loadu_ps emulation::loadu_ps
#define _mm512_loadu_si512 emulation::loadu_si512
#define _mm512_madd_epi16 emulation::madd_epi16
#define _mm512_maddubs_epi16 emulation::maddubs_epi16
#define _mm512_mask_blend_epi32 emulation::mask_blend_epi32
#define _mm512_mask_sub_epi8 emulation::mask_sub_epi8
#define _mm512_max_epi32 emulation::max_epi32
#define _mm512_max_ps emulation::max_ps
#define _mm512_min_ps emulation::min_ps
#define _mm512_movepi8_mask emulation::movepi8_mask
#define _mm512_mul_ps emulation::mul_ps
#define _mm512_mullo_epi32 emulation::mullo_epi32
#define _mm512_or_si512 emulation::or_si512
#define _mm512_set1_epi32 emulation::set1_epi32
#define _mm512_set1_ps emulation::set1_ps
#define _mm512_setzero_ps emulation::setzero_ps
#define _mm512_setzero_si512 emulation::setzero_si512
#define _mm512_shuffle_epi8 emulation::shuffle_epi8
#define _mm512_slli_epi32 emulation::slli_epi32
#define _mm512_srai_epi32 emulation::srai_epi32
#define _mm512_srli_epi32 emulation::srli_epi32
#define _mm512_storeu_ps emulation::storeu_ps
#define _mm512_storeu_si512 emulation::storeu_si512
#define _mm512_sub_epi32 emulation::sub_epi32
#define _mm512_sub_ps emulation::sub_ps
#define _mm512_xor_si512 emulation::xor_si512
