// Products of bf16 weights with bf16 activations on AMX-BF16. Included for AMX only. Compiled for AMX, run under an emulation of its
// tiles (emulation/tiles.h) against the arithmetic below; never run on hardware that has them, so nothing here was measured.
//
// The arithmetic, of all rows alike whatever their number: for 32 depths at a time, ascending, the last filled up with zeros,
//   even = Σ w·x over the even depths, odd = Σ w·x over the odd ones, each a chain of FMAs from 0, ascending; acc = acc + (even + odd)
// with denormal numbers taken for zeros and results flushed to them (tdpbf16ps). It is another one than that of the other
// instruction sets, so a `numerics_id` names the instruction set.
//
// The packed matrix is weights as tiles want them: 16 pairs of depths × 16 columns are 1 KiB in a row. Two tiles of rows times two
// panels are four chains of products, which hide their latency; one tile of rows is bound by memory.
#pragma once

#include "kernels.h"
#include "tile_session.h"
#include "vec.h"

namespace {

constexpr int64_t BF16_TILE_ROWS = 16;
constexpr int64_t BF16_TILE_DEPTH = 32;
constexpr int64_t BF16_TILE_BYTES = 1024;

constexpr int64_t bf16_steps(int64_t k) { return (k + BF16_TILE_DEPTH - 1) / BF16_TILE_DEPTH; }

constexpr int64_t bf16_padded_rows(int64_t rows) { return (rows + BF16_TILE_ROWS - 1) / BF16_TILE_ROWS * BF16_TILE_ROWS; }

// Floats that hold so many rows as tiles take them.
constexpr int64_t bf16_row_floats(int64_t rows, int64_t k) {
  return bf16_padded_rows(rows) * bf16_steps(k) * BF16_TILE_DEPTH / 2;
}

// Rounded rows as tiles take them: `[rows up to a whole tile][k up to a whole step]` bf16. Zeros where there is nothing.
SPLICE_INLINE void fill_bf16_rows(uint16_t* y, const float* x, int64_t x_stride, int64_t rows, int64_t k) {
  const int64_t depth = bf16_steps(k) * BF16_TILE_DEPTH;
  for (int64_t r = 0; r < bf16_padded_rows(rows); ++r, y += depth) {
    const int64_t known = r < rows ? k : 0;
    for (int64_t i = 0; i < known; ++i) y[i] = static_cast<uint16_t>(as_bits(x[r * x_stride + i]) >> 16);
    for (int64_t i = known; i < depth; ++i) y[i] = 0;
  }
}

// Two panels' last step, whose weights end early.
struct Bf16Tail {
  alignas(64) uint32_t pairs[2][BF16_TILE_BYTES / 4];

  // `pairs_k` words of 16 columns a panel.
  void fill(const uint8_t* panels, int64_t count, int64_t panel_bytes, int64_t pairs_k) {
    const int64_t first = pairs_k / 16 * BF16_TILE_BYTES;
    for (int64_t p = 0; p < count; ++p) {
      __builtin_memset(pairs[p], 0, sizeof pairs[p]);
      __builtin_memcpy(pairs[p], panels + p * panel_bytes + first, static_cast<size_t>(panel_bytes - first));
    }
  }
};

// Tiles 0 and 1 sum the first panel's columns, 2 and 3 the second's; 4 and 5 are rows, 6 and 7 weights.
template <int TILES, int PANELS>
SPLICE_INLINE void bf16_step(const uint8_t* a, long a_row, const uint8_t* b, int64_t b_panel) {
  asm volatile("" ::: "memory");  // gcc does not know that tile loads read memory
  _tile_loadd(4, a, a_row);
  if constexpr (TILES == 2) _tile_loadd(5, a + BF16_TILE_ROWS * a_row, a_row);
  _tile_loadd(6, b, 64);
  if constexpr (PANELS == 2) _tile_loadd(7, b + b_panel, 64);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (TILES == 2) _tile_dpbf16ps(1, 5, 6);
  if constexpr (PANELS == 2) _tile_dpbf16ps(2, 4, 7);
  if constexpr (TILES == 2 && PANELS == 2) _tile_dpbf16ps(3, 5, 7);
}

// The first `rows` of a tile's 16 rows.
SPLICE_INLINE void store_bf16_rows(const float* tile, int64_t rows, float* c) {
  for (int64_t r = 0; r < rows && r < BF16_TILE_ROWS; ++r) store(c + r * LANES, load(tile + r * LANES));
}

// c[p][rows][16] for up to 32 rows over PANELS panels of `panel_bytes`; a step of rows is 64 bytes.
template <int TILES, int PANELS>
__attribute__((noinline)) void bf16_amx_tile(const uint16_t* rows16, int64_t k, const uint8_t* weights, int64_t panel_bytes,
                                             const Bf16Tail& tail, int64_t rows, float* c, int64_t c_panel) {
  const int64_t whole = (k + 1) / 2 / 16;
  const long a_row = static_cast<long>(bf16_steps(k) * 64);
  const uint8_t* a = reinterpret_cast<const uint8_t*>(rows16);
  _tile_zero(0);
  if constexpr (TILES == 2) _tile_zero(1);
  if constexpr (PANELS == 2) _tile_zero(2);
  if constexpr (TILES == 2 && PANELS == 2) _tile_zero(3);
  for (int64_t s = 0; s < whole; ++s)
    bf16_step<TILES, PANELS>(a + s * 64, a_row, weights + s * BF16_TILE_BYTES, panel_bytes);
  if (whole < bf16_steps(k))
    bf16_step<TILES, PANELS>(a + whole * 64, a_row, reinterpret_cast<const uint8_t*>(tail.pairs), BF16_TILE_BYTES);
  alignas(64) float sums[BF16_TILE_ROWS * LANES];
  _tile_stored(0, sums, 64);
  store_bf16_rows(sums, rows, c);
  if constexpr (TILES == 2) {
    _tile_stored(1, sums, 64);
    store_bf16_rows(sums, rows - BF16_TILE_ROWS, c + BF16_TILE_ROWS * LANES);
  }
  if constexpr (PANELS == 2) {
    _tile_stored(2, sums, 64);
    store_bf16_rows(sums, rows, c + c_panel);
  }
  if constexpr (TILES == 2 && PANELS == 2) {
    _tile_stored(3, sums, 64);
    store_bf16_rows(sums, rows - BF16_TILE_ROWS, c + c_panel + BF16_TILE_ROWS * LANES);
  }
}

// c[p][row][16] of `rows` rows that fill_bf16_rows has put in order, over `panels` neighbouring panels; in a session (tile_session.h).
SPLICE_INLINE void bf16_tile_product(const splice::cpu::LinearArgs& args, int64_t panel, int64_t panels, int64_t rows, float* c,
                                     const uint16_t* a) {
  const int64_t pairs = (args.k + 1) / 2, panel_bytes = pairs * 64, depth = bf16_steps(args.k) * BF16_TILE_DEPTH;
  const uint8_t* weights = static_cast<const uint8_t*>(args.packed) + panel * panel_bytes;
  const int64_t c_panel = rows * LANES;
  Bf16Tail tail;
  for (int64_t p = 0; p < panels; p += 2) {
    const int64_t count = panels - p < 2 ? panels - p : 2;
    const uint8_t* own = weights + p * panel_bytes;
    tail.fill(own, count, panel_bytes, pairs);
    for (int64_t row = 0; row < rows; row += 2 * BF16_TILE_ROWS) {
      const int64_t left = rows - row;
      const auto multiply = left > BF16_TILE_ROWS ? (count == 2 ? bf16_amx_tile<2, 2> : bf16_amx_tile<2, 1>)
                                                  : (count == 2 ? bf16_amx_tile<1, 2> : bf16_amx_tile<1, 1>);
      multiply(a + row * depth, args.k, own, panel_bytes, tail, left, c + p * c_panel + row * LANES, c_panel);
    }
  }
}

}  // namespace
