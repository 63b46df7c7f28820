// y = x·Wᵀ + bias on packed weights: the bulk of a forward pass. Products land in a small tile and what follows them (bias,
// residual sum, SwiGLU with the quantisation of its result) is done while the tile is in the first-level cache.
#pragma once

#include "bf16.h"
#include "elementwise.h"
#include "float_linear.h"
#include "int8_linear.h"
#include "kernels.h"
#if defined(SPLICE_AMX)
#include "bf16_tiles.h"
#include "int8_tiles.h"
#include "tile_session.h"
#endif

namespace {

using splice::cpu::Epilogue;
using splice::cpu::GATE_COLUMNS;
using splice::cpu::LinearArgs;

constexpr int64_t BATCH_PANELS = MAX_PANELS > 4 ? MAX_PANELS : 4;  // panels that share a tile of products
constexpr int64_t TILE_FLOATS = BATCH_PANELS * LANES * ROW_CHUNK;
#if defined(SPLICE_AMX)
constexpr int64_t INT8_SLAB_BLOCK = TILE_SLAB_BLOCK;

// What the products of a call are made with: int8 tiles pay from 16 rows on; bf16 ones are an arithmetic of their own, so take all.
SPLICE_INLINE TileShape tile_shape(const LinearArgs& args) {
  if (args.x8) return args.m >= INT8_TILE_ROWS ? TileShape::INT8 : TileShape::NONE;
  return args.bf16 && args.dtype == SPLICE_CPU_BF16 ? TileShape::BF16 : TileShape::NONE;
}
#else
constexpr int64_t INT8_SLAB_BLOCK = SLAB_BLOCK;
#endif

SPLICE_INLINE void product(const LinearArgs& args, int64_t panel, int64_t panels, int64_t first_row, int64_t rows, float* c,
                           float* slab) {
#if defined(SPLICE_AMX)
  if (tile_shape(args) == TileShape::BF16) {
    bf16_tile_product(args, panel, panels, rows, c, reinterpret_cast<const uint16_t*>(slab));
    return;
  }
#endif
  if (!args.x8) {
    float_product(args, panel, panels, first_row, rows, c, slab);
    return;
  }
#if defined(SPLICE_AMX)
  if (rows >= INT8_TILE_ROWS) {
    int8_tile_product(args, panel, panels, first_row, rows, c, reinterpret_cast<uint8_t*>(slab));
    return;
  }
#endif
  int8_product(args, panel, panels, first_row, rows, c, reinterpret_cast<uint8_t*>(slab));
}

// One panel's products into y; drops the columns that only fill the last panel.
SPLICE_INLINE void finish_panel(const LinearArgs& args, int64_t panel, int64_t first_row, int64_t rows, const float* c) {
  const int64_t column = panel * LANES;
  const int64_t columns = args.n - column < LANES ? args.n - column : LANES;
  const bool sum = args.epilogue == Epilogue::ADD;
  float* y = args.y + first_row * args.y_stride + column;
  if (columns == LANES) {
    const F16 bias = args.bias ? load(args.bias + column) : zero();
    for (int64_t r = 0; r < rows; ++r, y += args.y_stride) {
      F16 value = load(c + r * LANES);
      if (args.bias) value = add(value, bias);
      store(y, sum ? add(load(y), value) : value);
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r, y += args.y_stride)
    for (int64_t i = 0; i < columns; ++i) {
      float value = c[r * LANES + i];
      if (args.bias) value = value + args.bias[column + i];
      y[i] = sum ? y[i] + value : value;
    }
}

// 32 columns of the gate, c[2][rows][16], and the 32 of the other half that they gate, c[2..3].
SPLICE_INLINE void finish_gate(const LinearArgs& args, int64_t item, int64_t first_row, int64_t rows, const float* c) {
  const int64_t c_panel = rows * LANES, column = item * GATE_COLUMNS, half = args.n / 2;
  const float* bias = args.bias ? args.bias + column : nullptr;
  for (int64_t r = 0; r < rows; ++r, c += LANES) {
    F16 gate[2] = {load(c), load(c + c_panel)}, up[2] = {load(c + 2 * c_panel), load(c + 3 * c_panel)};
    if (bias)
      for (int i = 0; i < 2; ++i) {
        gate[i] = add(gate[i], load(bias + i * LANES));
        up[i] = add(up[i], load(bias + half + i * LANES));
      }
    const F16 low = gated(args.activation, gate[0], up[0]), high = gated(args.activation, gate[1], up[1]);
    const int64_t row = first_row + r;
    if (args.y8) {
      quantize_block(args.y8 + row * (half / GATE_COLUMNS) + item, low, high);
    } else {
      store(args.y + row * args.y_stride + column, low);
      store(args.y + row * args.y_stride + column + LANES, high);
    }
  }
}

// Rows first_row..first_row+rows as they go into the product.
SPLICE_INLINE LinearArgs with_rounded_rows(const LinearArgs& args, int64_t first_row, int64_t rows, float* rounded) {
  round_rows_to_bf16(rounded, args.x + first_row * args.x_stride, args.x_stride, rows, args.k);
  LinearArgs own = args;
  own.x = rounded - first_row * args.k;
  own.x_stride = args.k;
  return own;
}

SPLICE_INLINE size_t product_scratch(int64_t k) {
  const int64_t int8_slab = k / splice::cpu::INT8_DEPTH * INT8_SLAB_BLOCK / static_cast<int64_t>(sizeof(float));
  int64_t slab = int8_slab > FLOAT_SLAB ? int8_slab : FLOAT_SLAB;
#if defined(SPLICE_AMX)
  if (bf16_row_floats(ROW_CHUNK, k) > slab) slab = bf16_row_floats(ROW_CHUNK, k);
#endif
  return static_cast<size_t>(TILE_FLOATS + slab);
}

void linear(const LinearArgs& all, int64_t first, int64_t last, float* scratch) {
  float *c = scratch, *slab = scratch + TILE_FLOATS;
  LinearArgs args = all;
#if defined(SPLICE_AMX)
  const TileSession session(tile_shape(args));
#endif
  for (int64_t row = 0; row < args.m; row += ROW_CHUNK) {
    const int64_t rows = args.m - row < ROW_CHUNK ? args.m - row : ROW_CHUNK;
    if (args.bf16) args = with_rounded_rows(all, row, rows, scratch + product_scratch(args.k));
#if defined(SPLICE_AMX)
    if (tile_shape(args) == TileShape::BF16)
      fill_bf16_rows(reinterpret_cast<uint16_t*>(slab), args.x + row * args.x_stride, args.x_stride, rows, args.k);
#endif
    if (args.epilogue == Epilogue::GATE) {
      constexpr int64_t PANELS = GATE_COLUMNS / LANES;
      for (int64_t item = first; item < last; ++item) {
        product(args, item * PANELS, PANELS, row, rows, c, slab);
        product(args, args.n / 2 / LANES + item * PANELS, PANELS, row, rows, c + PANELS * rows * LANES, slab);
        finish_gate(args, item, row, rows, c);
      }
      continue;
    }
    for (int64_t panel = first; panel < last; panel += BATCH_PANELS) {
      const int64_t panels = last - panel < BATCH_PANELS ? last - panel : BATCH_PANELS;
      product(args, panel, panels, row, rows, c, slab);
      for (int64_t p = 0; p < panels; ++p) finish_panel(args, panel + p, row, rows, c + p * rows * LANES);
    }
  }
}

size_t linear_scratch(const LinearArgs& args) {
  return product_scratch(args.k) + (args.bf16 ? static_cast<size_t>(ROW_CHUNK * args.k) : 0);
}

}  // namespace
