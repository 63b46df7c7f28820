// The register tile all matrix products are made of: C[rows, 16·panels] (+)= A[rows, depth] · B[depth, 16·panels].
//
// Each element of C is one chain of fused multiply-adds over depth, ascending, from zero or from the C it finds; a product
// may therefore be cut along depth anywhere, and rows and panels may be grouped at will, without changing a bit.
// Tile shapes only decide speed: AVX2 keeps 6 rows × 1 panel in 12 of 16 registers (12 FMA per 8 loads), AVX-512 12 rows × 2
// panels in 24 of 32. Few rows take more panels, so that about 8 independent chains hide the latency of the FMA.
#pragma once

#include "vec.h"

namespace {

#if defined(SPLICE_AVX512)
constexpr int TILE_ROWS = 12;
constexpr int TILE_PANELS = 2;
constexpr int panels_for(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }
#elif !defined(SPLICE_AVX2)
constexpr int TILE_ROWS = 2;  // nothing to gain without registers to fill, and compilers take minutes over more
constexpr int TILE_PANELS = 1;
constexpr int panels_for(int) { return 1; }
#else
constexpr int TILE_ROWS = 6;
constexpr int TILE_PANELS = 1;
constexpr int panels_for(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#endif
constexpr int MAX_PANELS = panels_for(1);

// Where B's panels lie: panel p, depth d at data + p·panel + d·step.
struct PanelsF32 {
  const float* data;
  int64_t panel, step;
};

template <int ROWS, int PANELS>
SPLICE_INLINE void read_tile(F16 (&acc)[ROWS][PANELS], const float* c, int64_t c_row, int64_t c_panel, bool accumulate) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) acc[r][p] = accumulate ? load(c + r * c_row + p * c_panel) : zero();
}

template <int ROWS, int PANELS>
SPLICE_INLINE void write_tile(const F16 (&acc)[ROWS][PANELS], float* c, int64_t c_row, int64_t c_panel) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) store(c + r * c_row + p * c_panel, acc[r][p]);
}

template <int ROWS, int PANELS>
SPLICE_INLINE void multiply_add(F16 (&acc)[ROWS][PANELS], const F16 (&b)[PANELS], const float* a, int64_t a_row) {
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    const F16 value = splat(a[r * a_row]);
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) acc[r][p] = fma(value, b[p], acc[r][p]);
  }
}

template <int ROWS, int PANELS>
void tile_f32(const float* a, int64_t a_row, PanelsF32 b, int64_t depth, float* c, int64_t c_row, int64_t c_panel,
              bool accumulate) {
  F16 acc[ROWS][PANELS];
  read_tile(acc, c, c_row, c_panel, accumulate);
  const float* column = b.data;
  for (int64_t d = 0; d < depth; ++d, column += b.step) {
    F16 values[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) values[p] = load(column + p * b.panel);
    multiply_add(acc, values, a + d, a_row);
  }
  write_tile(acc, c, c_row, c_panel);
}

// B in pairs of bf16, widened in registers: half the bytes, the same chain over depth.
template <int ROWS, int PANELS>
void tile_bf16(const float* a, int64_t a_row, const uint32_t* b, int64_t b_panel, int64_t depth, float* c, int64_t c_row,
               int64_t c_panel) {
  F16 acc[ROWS][PANELS];
  read_tile(acc, c, c_row, c_panel, false);
  int64_t d = 0;
  for (; d + 1 < depth; d += 2, b += 16) {
    F16 even[PANELS], odd[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) load_bf16_pair(b + p * b_panel, even[p], odd[p]);
    multiply_add(acc, even, a + d, a_row);
    multiply_add(acc, odd, a + d + 1, a_row);
  }
  if (d < depth) {
    F16 even[PANELS], odd[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) load_bf16_pair(b + p * b_panel, even[p], odd[p]);
    multiply_add(acc, even, a + d, a_row);
  }
  write_tile(acc, c, c_row, c_panel);
}

// Calls body<ROWS>() for a number of rows known only at run time, 1..TILE_ROWS.
template <int ROWS = TILE_ROWS, class Body>
SPLICE_INLINE void with_rows(int64_t rows, Body&& body) {
  if constexpr (ROWS == 1) {
    body.template operator()<1>();
  } else {
    if (rows == ROWS)
      body.template operator()<ROWS>();
    else
      with_rows<ROWS - 1>(rows, static_cast<Body&&>(body));
  }
}

// C[rows, columns] (+)= A · B for any number of rows; columns are whole panels, laid `c_panel` apart.
SPLICE_INLINE void multiply_rows(const float* a, int64_t a_row, PanelsF32 b, int64_t panels, int64_t depth, float* c,
                                 int64_t c_row, int64_t c_panel, int64_t rows, bool accumulate) {
  // Tiles of nearly equal height: 8 rows as 4 + 4, since 6 + 2 would leave the second one waiting on its own latency.
  int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t r = 0, count = 0; r < rows; r += count, --tiles) {
    count = (rows - r + tiles - 1) / tiles;
    with_rows(count, [&]<int ROWS>() {
      constexpr int WIDE = panels_for(ROWS);
      int64_t p = 0;
      for (; p + WIDE <= panels; p += WIDE)
        tile_f32<ROWS, WIDE>(a + r * a_row, a_row, {b.data + p * b.panel, b.panel, b.step}, depth,
                             c + r * c_row + p * c_panel, c_row, c_panel, accumulate);
      for (; p < panels; ++p)
        tile_f32<ROWS, 1>(a + r * a_row, a_row, {b.data + p * b.panel, b.panel, b.step}, depth,
                          c + r * c_row + p * c_panel, c_row, c_panel, accumulate);
    });
  }
}

}  // namespace
