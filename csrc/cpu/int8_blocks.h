// Blocks of quantised weights as the integer products take them: straight from the packed matrix, or from a slab of bytes that
// many rows share.
#pragma once

#include "int8_dot.h"
#include "kernels.h"
#include "quant_layout.h"

namespace {

using splice::cpu::has_minimum;
using splice::cpu::product_bits;
using splice::cpu::quant_bits;

// What scales block b of a panel: W and M of the arithmetic in int8_linear.h, exact in fp32.
template <int DTYPE>
struct BlockScales {
  F16 scale, minimum;
  W16 pair;  // Q6_K: the 8-bit scales of the two halves

  SPLICE_MEMBER void open(const uint8_t* panel, int64_t b) {
    const auto* halves = reinterpret_cast<const uint16_t*>(panel + splice::cpu::quant_halves_offset(DTYPE, b));
    const uint8_t* bytes = panel + splice::cpu::quant_block_offset(DTYPE, b);
    scale = DTYPE == SPLICE_CPU_MXFP4 ? load_bf16(halves) : load_half(halves);
    if constexpr (DTYPE == SPLICE_CPU_Q6_K) {
      pair = load_byte_pairs(reinterpret_cast<const int8_t*>(bytes));
    } else if constexpr (splice::cpu::is_k_quant(DTYPE)) {
      scale = mul(scale, to_float(load_bytes(bytes)));
      minimum = mul(load_half(halves + LANES), to_float(load_bytes(bytes + LANES)));
      minimum = sub(zero(), minimum);
    } else if constexpr (has_minimum(DTYPE)) {
      minimum = load_half(halves + LANES);
    }
  }
};

// A block in its packed form.
template <int DTYPE>
struct PackedBlock {
  static constexpr int FORM = DTYPE;
  const uint8_t* values;
  BlockScales<DTYPE> scales;

  SPLICE_MEMBER void open(const uint8_t* panel, int64_t b) {
    values = panel + splice::cpu::quant_block_offset(DTYPE, b) + splice::cpu::quant_block_header(DTYPE);
    scales.open(panel, b);
  }
  SPLICE_MEMBER F16 scale() const { return scales.scale; }
  SPLICE_MEMBER F16 minimum() const { return scales.minimum; }
  SPLICE_MEMBER W16 pair() const { return scales.pair; }

  SPLICE_MEMBER W16 word(int w) const { return load_words(values + w * LANES * 4); }
  // What lies so many bytes on; past the end of a matrix it asks for nothing that hurts.
  SPLICE_MEMBER void prefetch(int64_t ahead) const {
    for (int64_t line = 0; line < splice::cpu::quant_block_bytes(DTYPE); line += 64) __builtin_prefetch(values + ahead + line);
  }

  // The four weights of group G, one a byte.
  template <int G>
  SPLICE_MEMBER W16 group() const {
    constexpr int BITS = quant_bits(DTYPE);
    if constexpr (BITS == 8) {
      return word(G);
    } else {
      const W16 nibbles = (G < 4 ? word(G % 4) : shift_right<4>(word(G % 4))) & splat_word(0x0f0f0f0fu);
      if constexpr (BITS == 5) return nibbles | shift_left<4>(shift_right<G>(word(4)) & splat_word(0x01010101u));
      if constexpr (BITS == 6)
        return nibbles | shift_left<4>(shift_right<2 * (G % 4)>(word(4 + G / 4)) & splat_word(0x03030303u));
      if constexpr (DTYPE == SPLICE_CPU_MXFP4) return fp4_quants(nibbles);
      return nibbles;
    }
  }
};

// A block whose groups lie ready as bytes: `[8][16]` words, scales `[16]`, minima or pairs `[16]`.
constexpr int64_t SLAB_BLOCK = (GROUPS + 2) * LANES * 4;

// Types that differ only in how they are stored share one form of slab.
constexpr int slab_form(int dtype) {
  return dtype == SPLICE_CPU_Q4_K ? SPLICE_CPU_Q4_1 : dtype == SPLICE_CPU_Q5_K ? SPLICE_CPU_Q5_1 : dtype;
}

template <int SLAB_FORM>
struct SlabBlock {
  static constexpr int FORM = SLAB_FORM;
  const uint8_t* data;

  SPLICE_MEMBER void open(const uint8_t* slab, int64_t b) { data = slab + b * SLAB_BLOCK; }
  SPLICE_MEMBER void prefetch(int64_t) const {}
  SPLICE_MEMBER F16 scale() const { return load(reinterpret_cast<const float*>(data) + GROUPS * LANES); }
  SPLICE_MEMBER F16 minimum() const { return load(reinterpret_cast<const float*>(data) + (GROUPS + 1) * LANES); }
  SPLICE_MEMBER W16 pair() const { return load_words(data + (GROUPS + 1) * LANES * 4); }
  template <int G>
  SPLICE_MEMBER W16 group() const {
    return load_words(data + G * LANES * 4);
  }
};

template <int DTYPE, int G>
SPLICE_INLINE void fill_groups(const PackedBlock<DTYPE>& block, uint8_t* dst) {
  store_words(dst + G * LANES * 4, block.template group<G>());
  if constexpr (G + 1 < GROUPS) fill_groups<DTYPE, G + 1>(block, dst);
}

// All blocks of one panel as a slab.
template <int DTYPE>
void fill_slab(const uint8_t* panel, int64_t blocks, uint8_t* slab) {
  for (int64_t b = 0; b < blocks; ++b, slab += SLAB_BLOCK) {
    PackedBlock<DTYPE> block;
    block.open(panel, b);
    fill_groups<DTYPE, 0>(block, slab);
    float* scales = reinterpret_cast<float*>(slab) + GROUPS * LANES;
    store(scales, block.scale());
    if constexpr (has_minimum(DTYPE)) store(scales + LANES, block.minimum());
    if constexpr (DTYPE == SPLICE_CPU_Q6_K) store_words(scales + LANES, block.pair());
  }
}

}  // namespace
