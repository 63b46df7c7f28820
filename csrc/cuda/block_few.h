// The tile of few rows, 8 or 16, of products with quantised weights (block_tile.h): bound by the weights' bytes.
//
// A block of eight warps takes two panels and, at a time, a round of four slices. A warp multiplies one slice of one panel
// and leaves its dots in shared memory; then each thread that has an output walks all sixteen blocks for it. So even n = 4096 keeps 128
// multiprocessors reading though k is not split. Rounds arrive by asynchronous copies, one to three ahead.
#pragma once

#include "block_tile.h"

namespace splice::cuda {

constexpr int FEW_PANELS = 2, ROUND_SLICES = 4, ROUND_BLOCKS = ROUND_SLICES * SLICE_BLOCKS;
constexpr int FEW_THREADS = FEW_PANELS * ROUND_SLICES * WARP;

// Dots of 16 columns and 8 rows. Element i of a lane of a fragment stands at lane xor i of row i, so that neither lanes with one i nor
// columns of one row meet in a bank.
struct FragmentDots {
  float value[4][WARP];
  SPLICE_DEVICE float& of_lane(int i, int lane) { return value[i][lane ^ i]; }
  SPLICE_DEVICE float of(int row, int column) const {
    const int i = column / 8 * 2 + row % 2;
    return value[i][(column % 8 * 4 + row / 2) ^ i];
  }
};

template <class Form, class Rows, int fragments>
struct FewShared {
  static constexpr int rows = fragments * FRAGMENT_ROWS, row_slices = rows * ROUND_SLICES;
  struct Stage {
    Chunk weights[FEW_PANELS][ROUND_SLICES][Form::slice_chunks];
    Chunk x[ROUND_SLICES][rows * Rows::chunks];
    Chunk values[Rows::planes > 0 ? Rows::planes : 1][ROUND_SLICES][rows];  // scales and sums of four blocks
  };
  FragmentDots dots[FEW_PANELS][ROUND_BLOCKS][fragments];
  // So many fit beside the dots.
  static constexpr int room = SHARED_BYTES - static_cast<int>(sizeof(dots)), fitting = room / static_cast<int>(sizeof(Stage));
  static constexpr int stages = fitting > 4 ? 4 : fitting;
  static_assert(stages >= 2);
  Stage stage[stages];
};

template <class Form, class Rows, int fragments>
SPLICE_DEVICE void start_round(const BlockArgs& args, int64_t first_row, int64_t first_panel, int round,
                               typename FewShared<Form, Rows, fragments>::Stage& stage) {
  using Shared = FewShared<Form, Rows, fragments>;
  constexpr int slice_threads = FEW_THREADS / ROUND_SLICES;
  const int warp = thread_index() / WARP, panel = warp / ROUND_SLICES, own = warp % ROUND_SLICES, first = round * ROUND_SLICES;
  if (first < slices_of(args.k)) {
    start_weights<Form>(args, first_panel + panel, first + own, stage.weights[panel][own]);
    const int slice = thread_index() / slice_threads;
    start_rows<Rows, Shared::rows, slice_threads>(args, first_row, first + slice, thread_index() % slice_threads, stage.x[slice]);
    if (thread_index() < Shared::row_slices) {
      const int row = thread_index() / ROUND_SLICES, of = thread_index() % ROUND_SLICES;
      SPLICE_UNROLL
      for (int plane = 0; plane < Rows::planes; ++plane)
        Rows::start_scales(args, plane, first_row + row, first + of, &stage.values[plane][of][row]);
    }
  }
  close_copies();
}

// The dots of one panel and slice; where the tile sums its rows itself, `sums` is where to. Blocks beyond k are zeros.
template <class Form, class Rows, int fragments>
SPLICE_DEVICE void multiply_slice(const Chunk* weights, const Chunk* rows, FragmentDots (*to)[fragments], Chunk* sums) {
  const int lane = thread_index() % WARP;
  SPLICE_UNROLL
  for (int b = 0; b < SLICE_BLOCKS; ++b) {
    uint32_t x[fragments][Rows::words], a[Rows::weight_words];
    Rows::load(rows, b, x);
    Rows::weights(weights, b, a);
    SPLICE_UNROLL
    for (int f = 0; f < fragments; ++f) {
      float dots[4];
      Rows::dots(a, x[f], dots);
      SPLICE_UNROLL
      for (int i = 0; i < 4; ++i) to[b][f].of_lane(i, lane) = dots[i];
    }
    if (sums) {
      const Chunk* none[2] = {};
      float scales[fragments][2], own[fragments][2];
      Rows::row_values(none, b, x, scales, own);
      SPLICE_UNROLL
      for (int f = 0; f < fragments; ++f) {
        SPLICE_UNROLL
        for (int i = 0; i < 2; ++i)
          if (lane < 4) sums[f * FRAGMENT_ROWS + 2 * lane + i].word[b] = bits_of_float(own[f][i]);
      }
    }
  }
}

// `count` blocks of a slice of the chain of one column and a row of each fragment.
template <class Form, class Rows, int fragments>
SPLICE_DEVICE void walk_slice(const Chunk* weights, const FragmentDots (*dots)[fragments], const Chunk* scales, const Chunk* sums, int row,
                              int column, int count, float (&acc)[fragments]) {
  const int g = column % 8, high = column / 8;
  SPLICE_UNROLL
  for (int f = 0; f < fragments; ++f) {
    const int at = f * FRAGMENT_ROWS + row;
    Chunk scale = {}, total = {};
    if constexpr (Rows::planes > 0) scale = scales[at];
    if constexpr (Form::minimum) total = sums[at];
    SPLICE_UNROLL
    for (int b = 0; b < SLICE_BLOCKS; ++b) {
      const float next = Rows::next(acc[f], dots[b][f].of(row, column), Form::scale(weights, b, g, high), float_of_bits(scale.word[b]),
                                    Form::lowest(weights, b, g, high), float_of_bits(total.word[b]));
      acc[f] = b < count ? next : acc[f];
    }
  }
}

// Block (x, y): panels 2·x and the next, row tile y.
template <class Form, class Rows, int fragments>
SPLICE_KERNEL __launch_bounds__(FEW_THREADS, 2) multiply_few(BlockArgs args) {
  using Shared = FewShared<Form, Rows, fragments>;
  constexpr bool sums_rows = Form::minimum && Rows::planes == 1;
  auto& shared = *reinterpret_cast<Shared*>(shared_memory());
  const int lane = thread_index() % WARP, warp = thread_index() / WARP, panel = warp / ROUND_SLICES, own = warp % ROUND_SLICES;
  const int64_t first_panel = block_x() * FEW_PANELS, first_row = block_y() * Shared::rows;
  const int blocks = static_cast<int>(args.k / BLOCK_DEPTH), rounds = (blocks + ROUND_BLOCKS - 1) / ROUND_BLOCKS;
  // A warp's chains are those of two rows of a fragment, so that warps whose rows are none have nothing to do; with one or two rows
  // the warps of both panels that do are on different quarters of the multiprocessor.
  const int column = lane % PANEL_COLUMNS, row = (own + 2 * panel) % ROUND_SLICES * 2 + lane / PANEL_COLUMNS;
  const bool idle = first_row + (row & ~1) >= args.m;
  float acc[fragments] = {};
  for (int i = 0; i + 1 < Shared::stages; ++i) start_round<Form, Rows, fragments>(args, first_row, first_panel, i, shared.stage[i]);
  for (int round = 0, at = 0; round < rounds; ++round, at = at + 1 < Shared::stages ? at + 1 : 0) {
    auto& stage = shared.stage[at];
    wait_copies<Shared::stages - 2>();
    barrier();  // this round is there, and everybody is done with the one before
    start_round<Form, Rows, fragments>(args, first_row, first_panel, round + Shared::stages - 1,
                                       shared.stage[at > 0 ? at - 1 : Shared::stages - 1]);
    multiply_slice<Form, Rows, fragments>(stage.weights[panel][own], stage.x[own], shared.dots[panel] + own * SLICE_BLOCKS,
                                          sums_rows && panel == 0 ? stage.values[0][own] : nullptr);
    barrier();  // the dots are there
    if (idle) continue;
    const int here = blocks - round * ROUND_BLOCKS;
    for (int slice = 0; slice < ROUND_SLICES && slice * SLICE_BLOCKS < here; ++slice)
      walk_slice<Form, Rows, fragments>(stage.weights[panel][slice], shared.dots[panel] + slice * SLICE_BLOCKS, stage.values[0][slice],
                                        stage.values[Rows::planes > 0 ? Rows::planes - 1 : 0][slice], row, column,
                                        here - slice * SLICE_BLOCKS, acc);
  }
  wait_copies<0>();
  SPLICE_UNROLL
  for (int f = 0; f < fragments; ++f)
    finish(args, first_row + f * FRAGMENT_ROWS + row, (first_panel + panel) * PANEL_COLUMNS + column, acc[f]);
}

template <class Form, class Rows, int fragments>
int few(const char* name, const BlockArgs& args, void* stream) {
  using Shared = FewShared<Form, Rows, fragments>;
  const GridSize grid{tiles_of(panels_of(args.n), FEW_PANELS), tiles_of(args.m, Shared::rows)};
  return launch(name, multiply_few<Form, Rows, fragments>, grid, FEW_THREADS, sizeof(Shared), stream, args);
}

}  // namespace splice::cuda
