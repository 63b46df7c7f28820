// Exact dot products of a block of 32 weights with 32 int8 activations, for 16 output columns at once.
//
// A word of weights holds four of one column; a step multiplies it by four activations, the same four for all columns. Eight
// steps make a block. Everything is exact integer arithmetic: instruction sets agree though they go about it differently.
#pragma once

#include "words.h"

namespace {

constexpr int GROUPS = 8;  // of four depths in a block

// Σ weight · activation over a block; add<G> is step G. Weights are unsigned numbers of BITS bits (4, 5), or with BITS = 8
// signed bytes, whose total comes out as Σ (weight + BYTE_BIAS) · activation.
template <int BITS>
struct Dot;

// The same for weights of 6 bits whose two halves of a block (bytes 0 and 1, bytes 2 and 3 of every word) have signed scales of
// their own: `scales` holds the two as 16-bit numbers.
struct PairDot;

#if defined(SPLICE_AVX512) || defined(SPLICE_AVX2)

// 2 · 63 · 127 = 16,002: two steps sum to at most 32,004 in 16 bits, then the scales multiply them into 32.
struct PairDot {
  W16 halves, words;
  template <int G>
  SPLICE_MEMBER void add(W16 weights, uint32_t activations, W16 scales) {
    const W16 products = byte_products(weights, activations);
    if constexpr (G % 2 == 0)
      keep(halves, products);
    else if constexpr (G == 1)
      keep(words, multiply_pairs(add_halves(halves, products), scales));
    else
      keep(words, add_words(words, multiply_pairs(add_halves(halves, products), scales)));
  }
  SPLICE_MEMBER W16 total() const { return words; }
};

#endif

#if defined(SPLICE_VNNI)

constexpr uint32_t BYTE_BIAS = 128;  // vpdpbusd wants one side unsigned

#if defined(SPLICE_AVX512)
SPLICE_INLINE W16 add_products(W16 sum, W16 weights, uint32_t activations) {
  return {_mm512_dpbusd_epi32(sum.v, weights.v, _mm512_set1_epi32(static_cast<int>(activations)))};
}
#else
SPLICE_INLINE W16 add_products(W16 sum, W16 weights, uint32_t activations) {
  const __m256i a = _mm256_set1_epi32(static_cast<int>(activations));
  return {_mm256_dpbusd_avx_epi32(sum.lo, weights.lo, a), _mm256_dpbusd_avx_epi32(sum.hi, weights.hi, a)};
}
#endif

template <int BITS>
struct Dot {
  W16 words;
  template <int G>
  SPLICE_MEMBER void add(W16 weights, uint32_t activations) {
    if constexpr (BITS == 8) weights = weights ^ splat_word(0x80808080u);
    if constexpr (G == 0)
      keep(words, add_products(splat_word(0), weights, activations));
    else
      keep(words, add_products(words, weights, activations));
  }
  SPLICE_MEMBER W16 total() const { return words; }
};

#elif defined(SPLICE_AVX512) || defined(SPLICE_AVX2)

constexpr uint32_t BYTE_BIAS = 0;

// |w| · (±a): |-128| is 128 as an unsigned byte, and an activation is never -128, so neither is its negative.
#if defined(SPLICE_AVX512)
SPLICE_INLINE W16 signed_products(W16 weights, uint32_t activations) {
  const __m512i a = _mm512_set1_epi32(static_cast<int>(activations));
  const __m512i turned = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(weights.v), _mm512_setzero_si512(), a);
  return {_mm512_maddubs_epi16(_mm512_abs_epi8(weights.v), turned)};
}
#else
SPLICE_INLINE __m256i signed_half(__m256i weights, __m256i a) {
  return _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(a, weights));
}
SPLICE_INLINE W16 signed_products(W16 weights, uint32_t activations) {
  const __m256i a = _mm256_set1_epi32(static_cast<int>(activations));
  return {signed_half(weights.lo, a), signed_half(weights.hi, a)};
}
#endif

// vpmaddubsw adds neighbouring products in 16 bits and saturates; it never does here, an activation being at most 127:
//   4 bits: 2 · 15 · 127 = 3,810, and all 8 steps of a block sum to 30,480 < 32,768;
//   5 bits: 2 · 31 · 127 = 7,874, and 4 steps to 31,496;
//   8 bits: 2 · 128 · 127 = 32,512, so every step is widened to 32 bits.
template <int BITS>
struct Dot {
  static constexpr int STEPS = BITS == 4 ? 8 : BITS == 5 ? 4 : 1;
  W16 halves, words;

  template <int G>
  SPLICE_MEMBER void add(W16 weights, uint32_t activations) {
    if constexpr (BITS == 8) {
      const W16 wide = multiply_pairs(signed_products(weights, activations), splat_word(0x00010001u));
      if constexpr (G == 0)
        keep(words, wide);
      else
        keep(words, add_words(words, wide));
    } else {
      if constexpr (G == STEPS) keep(words, multiply_pairs(halves, splat_word(0x00010001u)));
      const W16 products = byte_products(weights, activations);
      if constexpr (G % STEPS == 0)
        keep(halves, products);
      else
        keep(halves, add_halves(halves, products));
    }
  }
  SPLICE_MEMBER W16 total() const {
    if constexpr (BITS == 8) return words;
    const W16 last = multiply_pairs(halves, splat_word(0x00010001u));
    if constexpr (STEPS == GROUPS) return last;
    return add_words(words, last);
  }
};

#else

constexpr uint32_t BYTE_BIAS = 0;

// Σ over bytes first..last of weight · activation.
template <bool SIGNED, int FIRST, int LAST>
SPLICE_INLINE U16 byte_sum(W16 weights, uint32_t activations) {
  const W16 raised = shift_left<24 - 8 * FIRST>(weights);
  const W16 weight = SIGNED ? shift_signed<24>(raised) : shift_right<24>(raised);
  const U16 products = weight.v * static_cast<uint32_t>(static_cast<int8_t>(activations >> (8 * FIRST)));
  if constexpr (FIRST == LAST)
    return products;
  else
    return products + byte_sum<SIGNED, FIRST + 1, LAST>(weights, activations);
}

template <int BITS>
struct Dot {
  W16 words;
  template <int G>
  SPLICE_MEMBER void add(W16 weights, uint32_t activations) {
    const U16 sum = byte_sum<BITS == 8, 0, 3>(weights, activations);
    words.v = G == 0 ? sum : words.v + sum;
  }
  SPLICE_MEMBER W16 total() const { return words; }
};

struct PairDot {
  W16 words;
  template <int G>
  SPLICE_MEMBER void add(W16 weights, uint32_t activations, W16 scales) {
    const U16 sum = byte_sum<false, 0, 1>(weights, activations) * low_halves(scales).v +
                    byte_sum<false, 2, 3>(weights, activations) * shift_signed<16>(scales).v;
    words.v = G == 0 ? sum : words.v + sum;
  }
  SPLICE_MEMBER W16 total() const { return words; }
};

#endif

}  // namespace
