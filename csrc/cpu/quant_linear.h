// Products with quantised weights, bit for bit those with the same weights dequantised to fp32, or to fp32 and then to bf16.
//
// A weight is scale · quant (+ minimum): the product of a scale and a quant is exact in fp32 (11 bits by 8; in K-quants 17 by 5), so
// one FMA gives the dequantised value with its one rounding, and the chain over depth is that of tile.h. Q6_K, 19 bits by 6,
// rounds its one product; that of MXFP4, a power of two, is exact.
//
// One row dequantises in registers: a weight costs a mask, a conversion and two FMAs, so AVX2 is bound at one cycle for 8 weights
// while 5 bytes of Q4_1 (9 of Q8_0) come from memory. More rows share a slab of fp32 in the first-level cache.
#pragma once

#include "bf16.h"
#include "int8_blocks.h"
#include "int8_linear.h"
#include "tile.h"

namespace {

using splice::cpu::LinearArgs;
using splice::cpu::QUANT_DEPTH;

#if defined(SPLICE_AVX512)
constexpr int QUANT_PANELS = 4;  // that one row of x meets at a time
#elif defined(SPLICE_AVX2)
constexpr int QUANT_PANELS = 2;
#else
constexpr int QUANT_PANELS = 1;
#endif
// Whether one row of x dequantises in registers; more rows, and types that are long to unpack, share a slab of fp32.
constexpr bool quant_direct(int dtype) { return product_bits(dtype) % 4 == 0; }

// What scales the quants of nibble j, whose words are masked but not shifted: scale · 16^-j, exact.
constexpr float SIXTEENTH = 0.0625f;
constexpr int LAST_NIBBLE = 7;

// One panel's block, opened; weights<J>(w) are those of depth 4·J + w. J ascends.
template <int DTYPE>
struct QuantBlock {
  PackedBlock<DTYPE> block;
  F16 scale, minimum, step;

  SPLICE_MEMBER void open(const uint8_t* panel, int64_t b) {
    block.open(panel, b);
    scale = block.scale();
    step = scale;
    if constexpr (has_minimum(DTYPE))
      minimum = block.minimum();
    else
      minimum = mul(scale, splat(-static_cast<float>(splice::cpu::quant_offset(DTYPE))));
  }
  // Before the depths of nibble j.
  template <int J>
  SPLICE_MEMBER void turn() {
    if constexpr (product_bits(DTYPE) != 4) return;
    if constexpr (J > 0 && J < LAST_NIBBLE) step = mul(step, splat(SIXTEENTH));
    if constexpr (J == LAST_NIBBLE) step = scale;
  }
  template <int J>
  SPLICE_MEMBER F16 weights(int w) const {
    constexpr int BITS = product_bits(DTYPE);
    if constexpr (BITS == 8) {
      const W16 bytes = block.word(4 * (J % 2) + w);
      return mul(scale, to_float(shift_signed<24>(shift_left<24 - 8 * (J / 2)>(bytes))));
    } else if constexpr (BITS == 4) {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(block.values) + w * LANES;
      // The highest nibble is shifted: masked in place it would be a negative number.
      const F16 quants = J == LAST_NIBBLE ? load_high_nibble(words) : load_masked<(J < LAST_NIBBLE ? 15u << (4 * J) : 0u)>(words);
      return fma(step, quants, minimum);
    } else {
      return wide_weights<J>(w);
    }
  }
  // More than four bits: the depth's group has them together in one of its bytes.
  template <int J>
  SPLICE_MEMBER F16 wide_weights(int w) const {
    const W16 groups[4] = {block.template group<4 * (J % 2)>(), block.template group<4 * (J % 2) + 1>(),
                           block.template group<4 * (J % 2) + 2>(), block.template group<4 * (J % 2) + 3>()};
    const W16 quants = shift_right<8 * (J / 2)>(groups[w]) & splat_word(255);
    if constexpr (DTYPE == SPLICE_CPU_Q6_K) {
      const W16 pair = block.pair();
      const F16 half = to_float(J < 4 ? shift_signed<16>(shift_left<16>(pair)) : shift_signed<16>(pair));
      return mul(mul(scale, half), to_float(quants - splat_word(32)));
    } else if constexpr (DTYPE == SPLICE_CPU_MXFP4) {
      // Not as below: 12 times the largest scales is beyond fp32.
      return mul(scale, to_float(quants - splat_word(12)));
    } else {
      return fma(scale, to_float(quants), minimum);
    }
  }
};

// A vector of weights as the product takes them.
template <int DTYPE, bool BF16, int J>
SPLICE_INLINE F16 weights_of(const QuantBlock<DTYPE>& block, int w) {
  const F16 values = block.template weights<J>(w);
  return BF16 ? rounded_to_bf16(values) : values;
}

template <int DTYPE, bool BF16, int ROWS, int PANELS, int J>
SPLICE_INLINE void quant_depths(QuantBlock<DTYPE> (&block)[PANELS], F16 (&acc)[ROWS][PANELS], const float* x, int64_t x_row) {
#pragma GCC unroll 4
  for (int p = 0; p < PANELS; ++p) block[p].template turn<J>();
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) {
    F16 values[PANELS];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) values[p] = weights_of<DTYPE, BF16, J>(block[p], w);
    multiply_add(acc, values, x + 4 * J + w, x_row);
  }
}

// c[p][r][16]: ROWS rows of x over PANELS neighbouring panels, `panel` bytes apart.
template <int DTYPE, bool BF16, int ROWS, int PANELS>
void quant_tile(const float* x, int64_t x_row, const uint8_t* packed, int64_t panel, int64_t k, float* c) {
  F16 acc[ROWS][PANELS];
  read_tile(acc, c, LANES, ROWS * LANES, false);
  for (int64_t b = 0; b < k / QUANT_DEPTH; ++b, x += QUANT_DEPTH) {
    QuantBlock<DTYPE> block[PANELS];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) block[p].open(packed + p * panel, b);
    quant_depths<DTYPE, BF16, ROWS, PANELS, 0>(block, acc, x, x_row);
    quant_depths<DTYPE, BF16, ROWS, PANELS, 1>(block, acc, x, x_row);
    quant_depths<DTYPE, BF16, ROWS, PANELS, 2>(block, acc, x, x_row);
    quant_depths<DTYPE, BF16, ROWS, PANELS, 3>(block, acc, x, x_row);
    quant_depths<DTYPE, BF16, ROWS, PANELS, 4>(block, acc, x, x_row);
    quant_depths<DTYPE, BF16, ROWS, PANELS, 5>(block, acc, x, x_row);
    quant_depths<DTYPE, BF16, ROWS, PANELS, 6>(block, acc, x, x_row);
    quant_depths<DTYPE, BF16, ROWS, PANELS, 7>(block, acc, x, x_row);
  }
  write_tile(acc, c, LANES, ROWS * LANES);
}

template <int DTYPE, bool BF16, int J>
SPLICE_INLINE void widen_depths(QuantBlock<DTYPE>& block, float* dst) {
  block.template turn<J>();
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) store(dst + (4 * J + w) * LANES, weights_of<DTYPE, BF16, J>(block, w));
}

// Blocks first..last of one panel as fp32 `[depth][16]`.
template <int DTYPE, bool BF16>
void widen_quants(const uint8_t* panel, int64_t first, int64_t last, float* dst) {
  for (int64_t b = first; b < last; ++b, dst += QUANT_DEPTH * LANES) {
    QuantBlock<DTYPE> block;
    block.open(panel, b);
    widen_depths<DTYPE, BF16, 0>(block, dst);
    widen_depths<DTYPE, BF16, 1>(block, dst);
    widen_depths<DTYPE, BF16, 2>(block, dst);
    widen_depths<DTYPE, BF16, 3>(block, dst);
    widen_depths<DTYPE, BF16, 4>(block, dst);
    widen_depths<DTYPE, BF16, 5>(block, dst);
    widen_depths<DTYPE, BF16, 6>(block, dst);
    widen_depths<DTYPE, BF16, 7>(block, dst);
  }
}

}  // namespace
