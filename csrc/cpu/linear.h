// y = x·Wᵀ + bias on packed weights: the bulk of a forward pass.
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

constexpr int64_t LINEAR_SCRATCH = TILE_PANELS * LANES * (ROW_CHUNK + DEPTH_CHUNK) + MAX_PANELS * LANES * TILE_ROWS;

// Adds the bias, drops the columns that only fill the last panel.
SPLICE_INLINE void finish_panel(const LinearArgs& args, int64_t panel, int64_t first_row, int64_t rows, const float* c) {
  const int64_t column = panel * LANES;
  const int64_t columns = args.n - column < LANES ? args.n - column : LANES;
  float* y = args.y + first_row * args.y_stride + column;
  if (columns == LANES) {
    const F16 bias = args.bias ? load(args.bias + column) : zero();
    for (int64_t r = 0; r < rows; ++r) {
      const F16 value = load(c + r * LANES);
      store(y + r * args.y_stride, args.bias ? add(value, bias) : value);
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < columns; ++i)
      y[r * args.y_stride + i] = args.bias ? c[r * LANES + i] + args.bias[column + i] : c[r * LANES + i];
}

// Few rows: every weight is read once and used at once.
template <int ROWS, int PANELS>
SPLICE_INLINE int64_t stream_panels(const LinearArgs& args, int64_t panel, int64_t last, float* c) {
  constexpr int64_t C_PANEL = ROWS * LANES;
  for (; panel + PANELS <= last; panel += PANELS) {
    if (args.dtype == SPLICE_CPU_F32) {
      const int64_t stride = args.k * LANES;
      const float* data = static_cast<const float*>(args.packed) + panel * stride;
      tile_f32<ROWS, PANELS>(args.x, args.x_stride, {data, stride, LANES}, args.k, c, LANES, C_PANEL, false);
    } else {
      const int64_t stride = (args.k + 1) / 2 * LANES;
      const uint32_t* data = static_cast<const uint32_t*>(args.packed) + panel * stride;
      tile_bf16<ROWS, PANELS>(args.x, args.x_stride, data, stride, args.k, c, LANES, C_PANEL);
    }
    for (int p = 0; p < PANELS; ++p) finish_panel(args, panel + p, 0, ROWS, c + p * C_PANEL);
  }
  return panel;
}

SPLICE_INLINE void widen_slab(float* dst, const uint32_t* pairs, int64_t depth) {
  for (int64_t d = 0; d < depth; d += 2, pairs += LANES) {
    F16 even, odd;
    load_bf16_pair(pairs, even, odd);
    store(dst + d * LANES, even);
    if (d + 1 < depth) store(dst + (d + 1) * LANES, odd);
  }
}

// One row of quantised weights.
template <int DTYPE, int PANELS>
SPLICE_INLINE int64_t quant_panels(const LinearArgs& args, int64_t panel, int64_t last, float* c) {
  const int64_t stride = args.k / QUANT_DEPTH * quant_block_bytes(DTYPE);
  for (; panel + PANELS <= last; panel += PANELS) {
    quant_row<DTYPE, PANELS>(args.x, static_cast<const uint8_t*>(args.packed) + panel * stride, args.k, c);
    for (int p = 0; p < PANELS; ++p) finish_panel(args, panel + p, 0, 1, c + p * LANES);
  }
  return panel;
}

// Many rows: a slab of weights at a time, under all rows of the chunk.
SPLICE_INLINE void block_panels(const LinearArgs& args, int64_t panel, int64_t panels, int64_t first_row, int64_t rows,
                                float* scratch) {
  float* c = scratch;
  float* slab = scratch + TILE_PANELS * LANES * ROW_CHUNK;
  const int64_t c_panel = rows * LANES;
  for (int64_t k = 0; k < args.k; k += DEPTH_CHUNK) {
    const int64_t depth = args.k - k < DEPTH_CHUNK ? args.k - k : DEPTH_CHUNK;
    PanelsF32 b;
    if (args.dtype == SPLICE_CPU_F32) {
      b = {static_cast<const float*>(args.packed) + (panel * args.k + k) * LANES, args.k * LANES, LANES};
    } else if (splice::cpu::is_quantized(args.dtype)) {
      const int64_t block = quant_block_bytes(args.dtype), stride = args.k / QUANT_DEPTH * block;
      const uint8_t* blocks = static_cast<const uint8_t*>(args.packed) + panel * stride + k / QUANT_DEPTH * block;
      with_quant(args.dtype, [&]<int DTYPE>() {
        for (int64_t p = 0; p < panels; ++p) widen_quants<DTYPE>(blocks + p * stride, depth, slab + p * DEPTH_CHUNK * LANES);
      });
      b = {slab, DEPTH_CHUNK * LANES, LANES};
    } else {
      const int64_t stride = (args.k + 1) / 2 * LANES;
      const uint32_t* pairs = static_cast<const uint32_t*>(args.packed) + panel * stride + k / 2 * LANES;
      for (int64_t p = 0; p < panels; ++p) widen_slab(slab + p * DEPTH_CHUNK * LANES, pairs + p * stride, depth);
      b = {slab, DEPTH_CHUNK * LANES, LANES};
    }
    const float* x = args.x + first_row * args.x_stride + k;
    multiply_rows(x, args.x_stride, b, panels, depth, c, LANES, c_panel, rows, k > 0);
  }
  if (args.k == 0)
    for (int64_t i = 0; i < panels * c_panel; ++i) c[i] = 0.0f;
  for (int64_t p = 0; p < panels; ++p) finish_panel(args, panel + p, first_row, rows, c + p * c_panel);
}

void linear(const LinearArgs& args, int64_t first, int64_t last, float* scratch) {
  const bool quantized = splice::cpu::is_quantized(args.dtype);
  if (quantized && args.m == 1) {
    with_quant(args.dtype, [&]<int DTYPE>() {
      const int64_t rest = quant_panels<DTYPE, QUANT_PANELS>(args, first, last, scratch);
      quant_panels<DTYPE, 1>(args, rest, last, scratch);
    });
    return;
  }
  if (args.m <= TILE_ROWS && !quantized) {
    with_rows(args.m, [&]<int ROWS>() {
      const int64_t rest = stream_panels<ROWS, panels_for(ROWS)>(args, first, last, scratch);
      stream_panels<ROWS, 1>(args, rest, last, scratch);
    });
    return;
  }
  for (int64_t row = 0; row < args.m; row += ROW_CHUNK) {
    const int64_t rows = args.m - row < ROW_CHUNK ? args.m - row : ROW_CHUNK;
    for (int64_t panel = first; panel < last; panel += TILE_PANELS)
      block_panels(args, panel, last - panel < TILE_PANELS ? last - panel : TILE_PANELS, row, rows, scratch);
  }
}

size_t linear_scratch() { return static_cast<size_t>(LINEAR_SCRATCH); }

}  // namespace
