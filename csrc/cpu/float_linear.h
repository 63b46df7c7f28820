// Products with fp32 activations, the weights being fp32, bf16 or quantised and then counting as their fp32 values. With bf16
// activations rows come rounded (linear.h) and quantised weights count as their values rounded to bf16: products of two bf16
// numbers are exact in fp32, and each is added by one FMA, in the same order.
//
// Moves n·k weights once per 96 rows (4 bytes each, or 2 as bf16) and does 2·m·n·k operations. Few rows (one register tile)
// stream the weights and are bound by memory; many rows hold a 16-column slab of weights in the first-level cache and are
// bound by the FMA units.
// Measured on one AVX2 core (Zen 3; independent FMA chains in registers reach 103.7 GFLOP/s there), weights 3.5 MB in cache:
// fp32 from 16 rows on 92-96 GFLOP/s (0.89-0.92 of that), bf16 82-93 (0.79-0.90), at 8 rows 86 and 71. One row: 66 GB/s of
// fp32 and 46 GB/s of bf16 from cache; a 113 MB matrix from memory 25 GB/s, the same in bf16 22-26 GB/s (neighbours on the machine
// kept the memory's own ceiling from being measured at the same time).
#pragma once

#include "kernels.h"
#include "quant_linear.h"
#include "tile.h"

namespace {

using splice::cpu::LinearArgs;

constexpr int64_t ROW_CHUNK = 96;    // rows of x that stay in the second-level cache while all panels pass by
constexpr int64_t DEPTH_CHUNK = 256; // depth of the slab of weights kept in the first-level cache: 16 KiB a panel

constexpr int64_t FLOAT_SLAB = TILE_PANELS * LANES * DEPTH_CHUNK;

// All of these write c[p][row][16] of a number of neighbouring panels.

// Few rows: every weight is read once and used at once.
template <int ROWS, int PANELS>
SPLICE_INLINE int64_t stream_panels(const LinearArgs& args, const float* x, int64_t first, int64_t p, int64_t panels, float* c) {
  constexpr int64_t C_PANEL = ROWS * LANES;
  for (; p + PANELS <= panels; p += PANELS) {
    if (args.dtype == SPLICE_CPU_F32) {
      const int64_t stride = args.k * LANES;
      const float* data = static_cast<const float*>(args.packed) + (first + p) * stride;
      tile_f32<ROWS, PANELS>(x, args.x_stride, {data, stride, LANES}, args.k, c + p * C_PANEL, LANES, C_PANEL, false);
    } else {
      const int64_t stride = (args.k + 1) / 2 * LANES;
      const uint32_t* data = static_cast<const uint32_t*>(args.packed) + (first + p) * stride;
      tile_bf16<ROWS, PANELS>(x, args.x_stride, data, stride, args.k, c + p * C_PANEL, LANES, C_PANEL);
    }
  }
  return p;
}

SPLICE_INLINE void widen_slab(float* dst, const uint32_t* pairs, int64_t depth) {
  for (int64_t d = 0; d < depth; d += 2, pairs += LANES) {
    F16 even, odd;
    load_bf16_pair(pairs, even, odd);
    store(dst + d * LANES, even);
    if (d + 1 < depth) store(dst + (d + 1) * LANES, odd);
  }
}

// Few rows of x under quantised weights.
template <int DTYPE, bool BF16, int ROWS, int PANELS>
SPLICE_INLINE int64_t quant_panels(const LinearArgs& args, const float* x, int64_t first, int64_t p, int64_t panels, float* c) {
  const int64_t stride = splice::cpu::quant_panel_bytes(DTYPE, args.k);
  for (; p + PANELS <= panels; p += PANELS) {
    const uint8_t* data = static_cast<const uint8_t*>(args.packed) + (first + p) * stride;
    quant_tile<DTYPE, BF16, ROWS, PANELS>(x, args.x_stride, data, stride, args.k, c + p * ROWS * LANES);
  }
  return p;
}

// Depths k..k+depth of `panels` panels as fp32.
SPLICE_INLINE PanelsF32 depth_slab(const LinearArgs& args, int64_t panel, int64_t panels, int64_t k, int64_t depth, float* slab) {
  if (args.dtype == SPLICE_CPU_F32)
    return {static_cast<const float*>(args.packed) + (panel * args.k + k) * LANES, args.k * LANES, LANES};
  if (splice::cpu::is_quantized(args.dtype)) {
    const int64_t stride = splice::cpu::quant_panel_bytes(args.dtype, args.k), first = k / QUANT_DEPTH;
    const uint8_t* data = static_cast<const uint8_t*>(args.packed) + panel * stride;
    with_quant(args.dtype, [&]<int DTYPE>() {
      const auto widen = args.bf16 ? widen_quants<DTYPE, true> : widen_quants<DTYPE, false>;
      for (int64_t p = 0; p < panels; ++p)
        widen(data + p * stride, first, first + depth / QUANT_DEPTH, slab + p * DEPTH_CHUNK * LANES);
    });
  } else {
    const int64_t stride = (args.k + 1) / 2 * LANES;
    const uint32_t* pairs = static_cast<const uint32_t*>(args.packed) + panel * stride + k / 2 * LANES;
    for (int64_t p = 0; p < panels; ++p) widen_slab(slab + p * DEPTH_CHUNK * LANES, pairs + p * stride, depth);
  }
  return {slab, DEPTH_CHUNK * LANES, LANES};
}

// Many rows: a slab of weights at a time, under all rows of the chunk.
SPLICE_INLINE void block_panels(const LinearArgs& args, const float* x, int64_t panel, int64_t panels, int64_t rows, float* c,
                                float* slab) {
  const int64_t c_panel = rows * LANES;
  for (int64_t k = 0; k < args.k; k += DEPTH_CHUNK) {
    const int64_t depth = args.k - k < DEPTH_CHUNK ? args.k - k : DEPTH_CHUNK;
    const PanelsF32 b = depth_slab(args, panel, panels, k, depth, slab);
    multiply_rows(x + k, args.x_stride, b, panels, depth, c, LANES, c_panel, rows, k > 0);
  }
  if (args.k == 0)
    for (int64_t i = 0; i < panels * c_panel; ++i) c[i] = 0.0f;
}

// c[p][row][16] of rows first_row..first_row+rows over `panels` neighbouring panels; `slab` has FLOAT_SLAB floats.
SPLICE_INLINE void float_product(const LinearArgs& args, int64_t panel, int64_t panels, int64_t first_row, int64_t rows,
                                 float* c, float* slab) {
  const float* x = args.x + first_row * args.x_stride;
  if (rows == 1 && splice::cpu::is_quantized(args.dtype) && quant_direct(args.dtype)) {
    with_quant(args.dtype, [&]<int DTYPE>() {
      if constexpr (quant_direct(DTYPE)) {
        const auto multiply = [&]<bool BF16>() {
          const int64_t rest = quant_panels<DTYPE, BF16, 1, QUANT_PANELS>(args, x, panel, 0, panels, c);
          quant_panels<DTYPE, BF16, 1, 1>(args, x, panel, rest, panels, c);
        };
        args.bf16 ? multiply.template operator()<true>() : multiply.template operator()<false>();
      }
    });
    return;
  }
  if (!splice::cpu::is_quantized(args.dtype) && rows <= TILE_ROWS) {
    with_rows(rows, [&]<int ROWS>() {
      const int64_t rest = stream_panels<ROWS, panels_for(ROWS)>(args, x, panel, 0, panels, c);
      stream_panels<ROWS, 1>(args, x, panel, rest, panels, c);
    });
    return;
  }
  for (int64_t p = 0; p < panels; p += TILE_PANELS) {
    const int64_t count = panels - p < TILE_PANELS ? panels - p : TILE_PANELS;
    block_panels(args, x, panel + p, count, rows, c + p * rows * LANES, slab);
  }
}

}  // namespace
