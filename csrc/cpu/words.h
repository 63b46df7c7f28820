// W16: sixteen 32-bit words, the integer side of F16. Exact, so instruction sets may go about it as they like.
#pragma once

#include "vec.h"

namespace {

// Of the 4-bit floats, by their code: 12 + twice the number (quant_layout.h).
alignas(16) constexpr uint8_t FP4_QUANTS[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

#if defined(SPLICE_AVX512)

struct W16 {
  __m512i v;
};
SPLICE_INLINE W16 load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
SPLICE_INLINE void store_words(void* p, W16 a) { _mm512_storeu_si512(p, a.v); }
SPLICE_INLINE W16 splat_word(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
SPLICE_INLINE W16 operator&(W16 a, W16 b) { return {_mm512_and_si512(a.v, b.v)}; }
SPLICE_INLINE W16 operator|(W16 a, W16 b) { return {_mm512_or_si512(a.v, b.v)}; }
SPLICE_INLINE W16 operator^(W16 a, W16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
SPLICE_INLINE W16 operator-(W16 a, W16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
template <int N>
SPLICE_INLINE W16 shift_right(W16 a) { return {_mm512_srli_epi32(a.v, N)}; }
template <int N>
SPLICE_INLINE W16 shift_left(W16 a) { return {_mm512_slli_epi32(a.v, N)}; }
template <int N>
SPLICE_INLINE W16 shift_signed(W16 a) { return {_mm512_srai_epi32(a.v, N)}; }
SPLICE_INLINE F16 to_float(W16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Signed bytes or unsigned ones, widened to words.
SPLICE_INLINE W16 load_bytes(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
// Pairs of signed bytes as pairs of signed 16-bit numbers.
SPLICE_INLINE W16 load_byte_pairs(const int8_t* p) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// low·low + high·high of signed 16-bit pairs.
SPLICE_INLINE W16 multiply_pairs(W16 a, W16 b) { return {_mm512_madd_epi16(a.v, b.v)}; }
// Unsigned bytes times the same four signed ones, neighbours added in 16 bits with saturation.
SPLICE_INLINE W16 byte_products(W16 weights, uint32_t activations) {
  return {_mm512_maddubs_epi16(weights.v, _mm512_set1_epi32(static_cast<int>(activations)))};
}
// Of every byte, a code.
SPLICE_INLINE W16 fp4_quants(W16 codes) {
  const __m128i table = _mm_load_si128(reinterpret_cast<const __m128i*>(FP4_QUANTS));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes.v)};
}
SPLICE_INLINE W16 add_halves(W16 a, W16 b) { return {_mm512_add_epi16(a.v, b.v)}; }
SPLICE_INLINE W16 add_words(W16 a, W16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
SPLICE_INLINE void keep(W16& to, W16 value) {
  to.v = value.v;
#if !defined(SPLICE_EMULATED)  // where no register is that wide
  asm("" : "+v"(to.v));
#endif
}

#elif defined(SPLICE_AVX2)

struct W16 {
  __m256i lo, hi;
};
SPLICE_INLINE W16 load_words(const void* p) {
  const __m256i* raw = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(raw), _mm256_loadu_si256(raw + 1)};
}
SPLICE_INLINE void store_words(void* p, W16 a) {
  __m256i* raw = static_cast<__m256i*>(p);
  _mm256_storeu_si256(raw, a.lo);
  _mm256_storeu_si256(raw + 1, a.hi);
}
SPLICE_INLINE W16 splat_word(uint32_t x) {
  const __m256i v = _mm256_set1_epi32(static_cast<int>(x));
  return {v, v};
}
SPLICE_INLINE W16 operator&(W16 a, W16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
SPLICE_INLINE W16 operator|(W16 a, W16 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
SPLICE_INLINE W16 operator^(W16 a, W16 b) { return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)}; }
SPLICE_INLINE W16 operator-(W16 a, W16 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
template <int N>
SPLICE_INLINE W16 shift_right(W16 a) { return {_mm256_srli_epi32(a.lo, N), _mm256_srli_epi32(a.hi, N)}; }
template <int N>
SPLICE_INLINE W16 shift_left(W16 a) { return {_mm256_slli_epi32(a.lo, N), _mm256_slli_epi32(a.hi, N)}; }
template <int N>
SPLICE_INLINE W16 shift_signed(W16 a) { return {_mm256_srai_epi32(a.lo, N), _mm256_srai_epi32(a.hi, N)}; }
SPLICE_INLINE F16 to_float(W16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
SPLICE_INLINE W16 load_bytes(const uint8_t* p) {
  const __m128i* raw = reinterpret_cast<const __m128i*>(p);
  const __m128i* next = reinterpret_cast<const __m128i*>(p + 8);
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(raw)), _mm256_cvtepu8_epi32(_mm_loadl_epi64(next))};
}
SPLICE_INLINE W16 load_byte_pairs(const int8_t* p) {
  const __m128i* raw = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(raw)), _mm256_cvtepi8_epi16(_mm_loadu_si128(raw + 1))};
}
SPLICE_INLINE W16 multiply_pairs(W16 a, W16 b) { return {_mm256_madd_epi16(a.lo, b.lo), _mm256_madd_epi16(a.hi, b.hi)}; }
SPLICE_INLINE W16 byte_products(W16 weights, uint32_t activations) {
  const __m256i a = _mm256_set1_epi32(static_cast<int>(activations));
  return {_mm256_maddubs_epi16(weights.lo, a), _mm256_maddubs_epi16(weights.hi, a)};
}
SPLICE_INLINE W16 fp4_quants(W16 codes) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(FP4_QUANTS)));
  return {_mm256_shuffle_epi8(table, codes.lo), _mm256_shuffle_epi8(table, codes.hi)};
}
SPLICE_INLINE W16 add_halves(W16 a, W16 b) { return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)}; }
SPLICE_INLINE W16 add_words(W16 a, W16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
// to = value, in registers: left alone, compilers make all products of a block first, spill them, and add at the end. Member by
// member, because whole structures are copied through memory.
SPLICE_INLINE void keep(W16& to, W16 value) {
  to.lo = value.lo;
  to.hi = value.hi;
  asm("" : "+x"(to.lo), "+x"(to.hi));
}

#else

struct W16 {
  U16 v;
};
SPLICE_INLINE W16 load_words(const void* p) {
  W16 r;
  __builtin_memcpy(&r.v, p, sizeof r.v);
  return r;
}
SPLICE_INLINE void store_words(void* p, W16 a) { __builtin_memcpy(p, &a.v, sizeof a.v); }
SPLICE_INLINE W16 splat_word(uint32_t x) { return {U16{} + x}; }
SPLICE_INLINE W16 operator&(W16 a, W16 b) { return {a.v & b.v}; }
SPLICE_INLINE W16 operator|(W16 a, W16 b) { return {a.v | b.v}; }
SPLICE_INLINE W16 operator-(W16 a, W16 b) { return {a.v - b.v}; }
template <int N>
SPLICE_INLINE W16 shift_right(W16 a) { return {a.v >> N}; }
template <int N>
SPLICE_INLINE W16 shift_left(W16 a) { return {a.v << N}; }
template <int N>
SPLICE_INLINE W16 shift_signed(W16 a) { return {__builtin_bit_cast(U16, __builtin_bit_cast(I16, a.v) >> N)}; }
SPLICE_INLINE F16 to_float(W16 a) { return {__builtin_convertvector(__builtin_bit_cast(I16, a.v), V16)}; }
SPLICE_INLINE W16 load_bytes(const uint8_t* p) {
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  return {__builtin_convertvector(bytes, U16)};
}
SPLICE_INLINE W16 load_byte_pairs(const int8_t* p) {
  typedef int8_t Bytes __attribute__((vector_size(32)));
  typedef int16_t Halves __attribute__((vector_size(64)));
  Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  return {__builtin_bit_cast(U16, __builtin_convertvector(bytes, Halves))};
}
SPLICE_INLINE W16 fp4_quants(W16 codes) {
  uint8_t bytes[sizeof codes.v];
  __builtin_memcpy(bytes, &codes.v, sizeof bytes);
  for (uint8_t& byte : bytes) byte = FP4_QUANTS[byte];
  return load_words(bytes);
}
SPLICE_INLINE W16 low_halves(W16 a) { return shift_signed<16>(shift_left<16>(a)); }
SPLICE_INLINE W16 multiply_pairs(W16 a, W16 b) {
  return {low_halves(a).v * low_halves(b).v + shift_signed<16>(a).v * shift_signed<16>(b).v};
}

#endif

}  // namespace
