// Products with quantised weights, bit for bit those with the same weights dequantised to fp32.
//
// A weight is scale · quant (+ minimum): the product of an fp16 scale and a quant of at most 8 bits is exact in fp32, so one
// FMA gives the dequantised value with its one rounding, and the chain over depth is that of tile.h.
//
// One row is dequantised in registers: a weight costs a mask, a conversion and two FMAs, so AVX2 is bound at one cycle for 8
// weights while 5 bytes of Q4_1 (9 of Q8_0) come from memory. More rows share a slab of fp32 in the first-level cache.
#pragma once

#include "kernels.h"
#include "quant_layout.h"
#include "tile.h"

namespace {

using splice::cpu::LinearArgs;
using splice::cpu::quant_block_bytes;
using splice::cpu::quant_scales_bytes;
using splice::cpu::QUANT_DEPTH;

#if defined(SPLICE_AVX512)
constexpr int QUANT_PANELS = 4;
#else
constexpr int QUANT_PANELS = 2;
#endif

// What scales the quants of nibble j, whose words are masked but not shifted: scale · 16^-j, exact.
constexpr float SIXTEENTH = 0.0625f;
constexpr int LAST_NIBBLE = 7;

// One panel's block: calls use(depth, weights) for its 32 depths. `DTYPE` decides the decoding.
template <int DTYPE>
struct QuantBlock {
  const uint8_t* data;
  F16 scale, minimum, step;

  SPLICE_MEMBER void open(const uint8_t* block) {
    data = block + quant_scales_bytes(DTYPE);
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(block);
    scale = load_half(halves);
    step = scale;
    if constexpr (DTYPE == SPLICE_CPU_Q4_1) minimum = load_half(halves + LANES);
    if constexpr (DTYPE == SPLICE_CPU_Q4_0) minimum = mul(scale, splat(-8.0f));
  }
  // Before the depths of nibble j; j ascends.
  template <int J>
  SPLICE_MEMBER void turn() {
    if constexpr (J > 0 && J < LAST_NIBBLE) step = mul(step, splat(SIXTEENTH));
    if constexpr (J == LAST_NIBBLE) step = scale;
  }
  template <int J>
  SPLICE_MEMBER F16 weights(int w) const {
    if constexpr (DTYPE == SPLICE_CPU_Q8_0) {
      return mul(scale, load_int8(reinterpret_cast<const int8_t*>(data) + (4 * J + w) * LANES));
    } else {
      const uint32_t* words = reinterpret_cast<const uint32_t*>(data) + w * LANES;
      // The highest nibble is shifted: masked in place it would be a negative number.
      const F16 quants = J == LAST_NIBBLE ? load_high_nibble(words) : load_masked<(J < LAST_NIBBLE ? 15u << (4 * J) : 0u)>(words);
      return fma(step, quants, minimum);
    }
  }
};

template <int DTYPE, int PANELS, int J>
SPLICE_INLINE void quant_depths(QuantBlock<DTYPE> (&block)[PANELS], F16 (&acc)[PANELS], const float* x) {
#pragma GCC unroll 4
  for (int p = 0; p < PANELS; ++p) block[p].template turn<J>();
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) {
    const F16 value = splat(x[4 * J + w]);
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) acc[p] = fma(value, block[p].template weights<J>(w), acc[p]);
  }
}

// One row of x over PANELS neighbouring panels.
template <int DTYPE, int PANELS>
void quant_row(const float* x, const uint8_t* packed, int64_t k, float* c) {
  const int64_t stride = k / QUANT_DEPTH * quant_block_bytes(DTYPE);
  F16 acc[PANELS];
  for (int p = 0; p < PANELS; ++p) acc[p] = zero();
  for (int64_t d = 0; d < k; d += QUANT_DEPTH, packed += quant_block_bytes(DTYPE), x += QUANT_DEPTH) {
    QuantBlock<DTYPE> block[PANELS];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) block[p].open(packed + p * stride);
    quant_depths<DTYPE, PANELS, 0>(block, acc, x);
    quant_depths<DTYPE, PANELS, 1>(block, acc, x);
    quant_depths<DTYPE, PANELS, 2>(block, acc, x);
    quant_depths<DTYPE, PANELS, 3>(block, acc, x);
    quant_depths<DTYPE, PANELS, 4>(block, acc, x);
    quant_depths<DTYPE, PANELS, 5>(block, acc, x);
    quant_depths<DTYPE, PANELS, 6>(block, acc, x);
    quant_depths<DTYPE, PANELS, 7>(block, acc, x);
  }
  for (int p = 0; p < PANELS; ++p) store(c + p * LANES, acc[p]);
}

template <int DTYPE, int J>
SPLICE_INLINE void widen_depths(QuantBlock<DTYPE>& block, float* dst) {
  block.template turn<J>();
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) store(dst + (4 * J + w) * LANES, block.template weights<J>(w));
}

// `depth` depths (whole blocks) of one panel as fp32 `[depth][16]`.
template <int DTYPE>
void widen_quants(const uint8_t* packed, int64_t depth, float* dst) {
  for (int64_t d = 0; d < depth; d += QUANT_DEPTH, packed += quant_block_bytes(DTYPE), dst += QUANT_DEPTH * LANES) {
    QuantBlock<DTYPE> block;
    block.open(packed);
    widen_depths<DTYPE, 0>(block, dst);
    widen_depths<DTYPE, 1>(block, dst);
    widen_depths<DTYPE, 2>(block, dst);
    widen_depths<DTYPE, 3>(block, dst);
    widen_depths<DTYPE, 4>(block, dst);
    widen_depths<DTYPE, 5>(block, dst);
    widen_depths<DTYPE, 6>(block, dst);
    widen_depths<DTYPE, 7>(block, dst);
  }
}

// Calls body<DTYPE>() for a quantised dtype known only at run time.
template <class Body>
SPLICE_INLINE void with_quant(int dtype, Body&& body) {
  if (dtype == SPLICE_CPU_Q4_0)
    body.template operator()<SPLICE_CPU_Q4_0>();
  else if (dtype == SPLICE_CPU_Q4_1)
    body.template operator()<SPLICE_CPU_Q4_1>();
  else
    body.template operator()<SPLICE_CPU_Q8_0>();
}

}  // namespace
