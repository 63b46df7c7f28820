// The tile of many rows, 64, of products with quantised weights (block_tile.h): bound by the fp32 operations of chains.
//
// A block of four warps takes 64 rows, a warp 32 of them and 4 panels, with the chains in registers; slices arrive two ahead.
#pragma once

#include "block_tile.h"

namespace splice::cuda {

constexpr int MANY_ROWS = 64, MANY_THREADS = 4 * WARP, MANY_STAGES = 3;
// Two warps side by side, two one above the other.
constexpr int WARP_PANELS = 4, MANY_PANELS = 2 * WARP_PANELS, WARP_ROWS = MANY_ROWS / 2, WARP_FRAGMENTS = WARP_ROWS / FRAGMENT_ROWS;

template <class Form, class Rows>
struct ManyShared {
  struct Stage {
    Chunk weights[MANY_PANELS][Form::slice_chunks];
    Chunk x[MANY_ROWS * Rows::chunks];
    Chunk values[2][MANY_ROWS];
  };
  Stage stage[MANY_STAGES];
  static_assert(sizeof(stage) <= SHARED_BYTES);
};

template <class Form, class Rows>
SPLICE_DEVICE void start_slice(const BlockArgs& args, int64_t first_row, int64_t first_panel, int slice,
                               typename ManyShared<Form, Rows>::Stage& stage) {
  constexpr int warps = MANY_THREADS / WARP;
  if (slice < slices_of(args.k)) {
    SPLICE_UNROLL
    for (int i = 0; i < MANY_PANELS; i += warps) {
      const int panel = i + thread_index() / WARP;
      start_weights<Form>(args, first_panel + panel, slice, stage.weights[panel]);
    }
    start_rows<Rows, MANY_ROWS, MANY_THREADS>(args, first_row, slice, thread_index(), stage.x);
    const int plane = thread_index() / MANY_ROWS, row = thread_index() % MANY_ROWS;
    if (plane < Rows::planes) Rows::start_scales(args, plane, first_row + row, slice, &stage.values[plane][row]);
  }
  close_copies();
}

// One block of 32 depths: 32 rows times four panels.
template <class Form, class Rows>
SPLICE_DEVICE void multiply_block(const Chunk (*weights)[Form::slice_chunks], const Chunk* rows, const Chunk* (&values)[2], int b,
                                  float (&acc)[WARP_PANELS][WARP_FRAGMENTS][4]) {
  const int g = thread_index() % WARP / 4;
  uint32_t x[WARP_FRAGMENTS][Rows::words];
  float row_scales[WARP_FRAGMENTS][2], row_sums[WARP_FRAGMENTS][2];
  Rows::load(rows, b, x);
  Rows::row_values(values, b, x, row_scales, row_sums);
  SPLICE_UNROLL
  for (int p = 0; p < WARP_PANELS; ++p) {
    uint32_t a[Rows::weight_words];
    Rows::weights(weights[p], b, a);
    const float scales[2] = {Form::scale(weights[p], b, g, 0), Form::scale(weights[p], b, g, 1)};
    const float lowest[2] = {Form::lowest(weights[p], b, g, 0), Form::lowest(weights[p], b, g, 1)};
    SPLICE_UNROLL
    for (int f = 0; f < WARP_FRAGMENTS; ++f) {
      float dots[4];
      Rows::dots(a, x[f], dots);
      SPLICE_UNROLL
      for (int i = 0; i < 4; ++i)
        acc[p][f][i] = Rows::next(acc[p][f][i], dots[i], scales[i / 2], row_scales[f][i % 2], lowest[i / 2], row_sums[f][i % 2]);
    }
  }
}

// Block (x, y): row tile x, columns y.
template <class Form, class Rows>
SPLICE_KERNEL __launch_bounds__(MANY_THREADS) multiply_many(BlockArgs args) {
  using Shared = ManyShared<Form, Rows>;
  auto& shared = *reinterpret_cast<Shared*>(shared_memory());
  const int lane = thread_index() % WARP, warp = thread_index() / WARP, own_panel = warp % 2 * WARP_PANELS, own_row = warp / 2 * WARP_ROWS;
  const int64_t first_row = block_x() * MANY_ROWS, first_panel = block_y() * MANY_PANELS;
  const int blocks = static_cast<int>(args.k / BLOCK_DEPTH), slices = static_cast<int>(slices_of(args.k));
  float acc[WARP_PANELS][WARP_FRAGMENTS][4] = {};
  for (int i = 0; i + 1 < MANY_STAGES; ++i) start_slice<Form, Rows>(args, first_row, first_panel, i, shared.stage[i]);
  for (int slice = 0, at = 0; slice < slices; ++slice, at = at + 1 < MANY_STAGES ? at + 1 : 0) {
    const auto& stage = shared.stage[at];
    const int here = blocks - slice * SLICE_BLOCKS;
    wait_copies<MANY_STAGES - 2>();
    barrier();  // this slice is there, and everybody is done with the one before
    start_slice<Form, Rows>(args, first_row, first_panel, slice + MANY_STAGES - 1, shared.stage[at > 0 ? at - 1 : MANY_STAGES - 1]);
    const Chunk* values[2] = {stage.values[0] + own_row, stage.values[1] + own_row};
    SPLICE_UNROLL
    for (int b = 0; b < SLICE_BLOCKS; ++b)
      if (b < here)
        multiply_block<Form, Rows>(stage.weights + own_panel, stage.x + own_row * Rows::chunks, values, b, acc);
  }
  wait_copies<0>();
  SPLICE_UNROLL
  for (int p = 0; p < WARP_PANELS; ++p) {
    SPLICE_UNROLL
    for (int f = 0; f < WARP_FRAGMENTS; ++f) {
      SPLICE_UNROLL
      for (int i = 0; i < 4; ++i)
        finish(args, first_row + own_row + f * FRAGMENT_ROWS + lane % 4 * 2 + i % 2,
               (first_panel + own_panel + p) * PANEL_COLUMNS + lane / 4 + i / 2 * 8, acc[p][f][i]);
    }
  }
}

template <class Form, class Rows>
int many(const char* name, const BlockArgs& args, void* stream) {
  using Shared = ManyShared<Form, Rows>;
  const GridSize grid{tiles_of(args.m, MANY_ROWS), tiles_of(panels_of(args.n), MANY_PANELS)};
  return launch(name, multiply_many<Form, Rows>, grid, MANY_THREADS, sizeof(Shared), stream, args);
}

}  // namespace splice::cuda
