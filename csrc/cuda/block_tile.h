// Tiles of products with quantised weights, the same for every kind of rows (block_activations.h) and form of weights (block_form.h).
// Weights are the 16 rows of a matrix instruction, activations its 8 columns: in a fragment, thread 4·g + q has columns g and g + 8 of
// a panel and rows 2·q and 2·q + 1.
//
// What a row's chain of sums adds for a block depends on that block alone, so a block's dot products may be anybody's work; the chain
// runs through the blocks in ascending order in one thread. That is all that tiles have in common, and all that bits depend on.
//
// Few rows: a block of eight warps takes two panels and, at a time, a round of four slices. A warp multiplies one slice of one panel
// and leaves its dots in shared memory; then each thread that has an output walks all sixteen blocks for it. So even n = 4096 keeps 128
// multiprocessors reading though k is not split. Rounds arrive by asynchronous copies, one to three ahead.
// Many rows: a block of four warps takes 64 rows, a warp 32 of them and 4 panels, with the chains in registers; slices arrive two ahead.
#pragma once

#include "block_activations.h"
#include "launch.h"

namespace splice::cuda {

// Starts the copy of a panel's slice of weights by the lanes of a warp; what is beyond the last panel or slice is zeros.
template <class Form>
SPLICE_DEVICE void start_weights(const BlockArgs& args, int64_t panel, int slice, Chunk* to) {
  const int64_t slices = slices_of(args.k);
  const int lane = thread_index() % WARP;
  const bool valid = panel < panels_of(args.n) && slice < slices;
  const Chunk* from = static_cast<const Chunk*>(args.w) + (panel * slices + slice) * Form::slice_chunks + lane;
  SPLICE_UNROLL
  for (int i = 0; i < Form::slice_chunks; i += WARP)
    if (i + WARP <= Form::slice_chunks || i + lane < Form::slice_chunks) start_copy(to + i + lane, from + i, valid);
}

// Starts the copy of a slice of `rows` rows by `threads` threads, this one being `thread` of them; rows past the last and depths past
// k are zeros.
template <class Rows, int rows, int threads>
SPLICE_DEVICE void start_rows(const BlockArgs& args, int64_t first_row, int slice, int thread, Chunk* to) {
  constexpr int step = threads / Rows::chunks;
  static_assert(threads % Rows::chunks == 0 && rows % step == 0);
  const int row = thread / Rows::chunks, chunk = thread % Rows::chunks, at = slice * Rows::chunks + chunk;
  const bool within = at * Rows::depths < args.k;
  SPLICE_UNROLL
  for (int i = 0; i < rows; i += step)
    start_copy(to + Rows::place(row + i, chunk), Rows::row_of(args, first_row + row + i) + at, within && first_row + row + i < args.m);
}

// Bias, rounding and the write. NaN has the bits that csrc/cpu's products give it.
SPLICE_DEVICE void finish(const BlockArgs& args, int64_t row, int64_t column, float value) {
  if (row >= args.m || column >= args.n) return;
  if (args.bias) {
    const float bias =
        args.bias_is_float32 ? static_cast<const float*>(args.bias)[column] : from_bf16(static_cast<const uint16_t*>(args.bias)[column]);
    value = sum(value, bias);
  }
  const int64_t place = row * args.y_stride + column;
  const bool is_number = value == value;
  if (args.y_is_float32)
    static_cast<float*>(args.y)[place] = is_number ? value : float_of_bits(0x7fc00000u);
  else
    static_cast<uint16_t*>(args.y)[place] = is_number ? to_bf16(value) : 0x7fc0;
}

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
  // So many fit beside the dots into 99 KiB, which is all that some GPUs have.
  static constexpr int room = (99 << 10) - static_cast<int>(sizeof(dots)), fitting = room / static_cast<int>(sizeof(Stage));
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
  const bool high = column >= 8;
  SPLICE_UNROLL
  for (int f = 0; f < fragments; ++f) {
    const int at = f * FRAGMENT_ROWS + row;
    Chunk scale = {}, total = {};
    if constexpr (Rows::planes > 0) scale = scales[at];
    if constexpr (Form::minimum) total = sums[at];
    SPLICE_UNROLL
    for (int b = 0; b < SLICE_BLOCKS; ++b) {
      const ColumnPair factors = Form::scales(weights, b, column % 8), minima = Form::minima(weights, b, column % 8);
      const float next = Rows::next(acc[f], dots[b][f].of(row, column), high ? factors.high : factors.low, float_of_bits(scale.word[b]),
                                    high ? minima.high : minima.low, float_of_bits(total.word[b]));
      acc[f] = b < count ? next : acc[f];
    }
  }
}

// Block (x, y): panels 2·x and the next, row tile y.
template <class Form, class Rows, int fragments>
SPLICE_KERNEL __launch_bounds__(FEW_THREADS) multiply_few(BlockArgs args) {
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
    const ColumnPair scales = Form::scales(weights[p], b, g), minima = Form::minima(weights[p], b, g);
    SPLICE_UNROLL
    for (int f = 0; f < WARP_FRAGMENTS; ++f) {
      float dots[4];
      Rows::dots(a, x[f], dots);
      SPLICE_UNROLL
      for (int i = 0; i < 4; ++i)
        acc[p][f][i] = Rows::next(acc[p][f][i], dots[i], i < 2 ? scales.low : scales.high, row_scales[f][i % 2],
                                  i < 2 ? minima.low : minima.high, row_sums[f][i % 2]);
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

inline int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

template <class Form, class Rows, int fragments>
int few(const char* name, const BlockArgs& args, void* stream) {
  using Shared = FewShared<Form, Rows, fragments>;
  const GridSize grid{tiles_of(panels_of(args.n), FEW_PANELS), tiles_of(args.m, Shared::rows)};
  return launch(name, multiply_few<Form, Rows, fragments>, grid, FEW_THREADS, sizeof(Shared), stream, args);
}

template <class Form, class Rows>
int many(const char* name, const BlockArgs& args, void* stream) {
  using Shared = ManyShared<Form, Rows>;
  const GridSize grid{tiles_of(args.m, MANY_ROWS), tiles_of(panels_of(args.n), MANY_PANELS)};
  return launch(name, multiply_many<Form, Rows>, grid, MANY_THREADS, sizeof(Shared), stream, args);
}

template <class Form, class Rows>
int multiply(const char* name, const BlockArgs& args, void* stream) {
  switch (args.tile) {
    case 0: return few<Form, Rows, 1>(name, args, stream);
    case 1: return few<Form, Rows, 2>(name, args, stream);
    case 2: return many<Form, Rows>(name, args, stream);
    default: return fail(SPLICE_CUDA_INVALID, "%s: tile %d, expected 0 to 2", name, args.tile);
  }
}

constexpr int64_t MAX_DEPTH = int64_t{1} << 30;

inline int check_block_gemm(const char* name, const BlockArgs& args, int chunk_elements) {
  if (args.m < 0 || args.n <= 0 || args.k <= 0 || args.k > MAX_DEPTH || args.k % BLOCK_DEPTH || args.x_stride % chunk_elements)
    return fail(SPLICE_CUDA_INVALID, "%s: n %lld, k %lld and x_stride %lld, expected at least 1, a multiple of 32 up to 2^30, and one of %d", name,
                static_cast<long long>(args.n), static_cast<long long>(args.k), static_cast<long long>(args.x_stride), chunk_elements);
  if (!aligned(args.x) || !aligned(args.scales) || !aligned(args.w))
    return fail(SPLICE_CUDA_INVALID, "%s: x, scales and w must be aligned to 16 bytes", name);
  return SPLICE_CUDA_OK;
}

}  // namespace splice::cuda
