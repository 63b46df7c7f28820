// Products of each expert's rows with its own weights, in bfloat16 with float32 sums: mma.sync fed by cp.async. Compiled for sm_80 and
// sm_90; not yet run on a GPU.
//
// Moves every chosen expert's n·k weights, 2 bytes each, its rows once a tile of columns and y once; does 2·n·k operations a row. With r
// rows an expert that is r operations a byte of weights: bound by the weights' bytes while experts have fewer rows than some hundred,
// which is all of decode, by the matrix units above. mma.sync reaches some 60 % of what wgmma does on Hopper, which is the ceiling of
// this kernel there; grouped_sm90.cu is the one for many rows.
//
// As many blocks as the device holds take pairs of (tile of rows, tile of columns) in turn, until those that the device counted are
// done: the launch knows no count. Eight tiles of rows, mostly one expert's, take a tile of columns before the next, so that weights
// which many rows share come from memory once. Copies run ahead over the ends of pairs, `stages` steps of 64 elements of k. Rows come
// from where `sources` says, so that nobody gathers them first. Gate and up columns of the same outputs lie in the same thread, which
// applies the activation to the rounded products, as if they had been stored.
//
// An output is one chain over k in steps of 16 in ascending order, by the same instruction whatever the tile.
#include "grouped.h"

namespace splice::cuda {
namespace {

constexpr int STEP = 64, STEP_CHUNKS = STEP / CHUNK_ELEMENTS, MAX_SIZE = 1 << 24;

// Chunk c of row r of a step stands in place of chunk c xor (r mod 8), so that the eight rows a matrix load takes lie in eight groups
// of banks.
SPLICE_BOTH int chunk_place(int row, int chunk) { return row * STEP_CHUNKS + (chunk ^ (row & 7)); }

template <int rows_, int columns_, int row_warps_, int column_warps_, int stages_, int blocks_>
struct Tile {
  static constexpr int rows = rows_, columns = columns_, row_warps = row_warps_, column_warps = column_warps_, stages = stages_;
  static constexpr int blocks = blocks_;  // on a multiprocessor
  static constexpr int threads = row_warps * column_warps * WARP, warp_rows = rows / row_warps, warp_columns = columns / column_warps;
  static constexpr int row_fragments = warp_rows / 16, column_fragments = warp_columns / 8;
  static constexpr int row_loads = rows * STEP_CHUNKS / threads, column_loads = columns * STEP_CHUNKS / threads;
  static_assert(rows * STEP_CHUNKS % threads == 0 && columns * STEP_CHUNKS % threads == 0 && column_fragments % 2 == 0);
};

template <class Tile>
struct Stage {
  Chunk x[Tile::rows * STEP_CHUNKS], w[Tile::columns * STEP_CHUNKS];
};

// Runs ahead of the products: which step of which work a thread copies next, and from where.
template <class Tile, bool is_gated>
struct Loader {
  int x[Tile::row_loads], w[Tile::column_loads];  // rows of x, and of the expert's matrix; −1: zeros
  Work<Tile, is_gated> work;
  int k = 0;

  SPLICE_DEVICE explicit Loader(const splice_cuda_grouped& args) : work(args) { open(); }

  SPLICE_DEVICE void open() {
    if (!work.is_there()) return;
    const splice_cuda_grouped& args = work.args;
    const int first = thread_index() / STEP_CHUNKS;
    SPLICE_UNROLL
    for (int i = 0; i < Tile::row_loads; ++i) {
      const int row = first + i * (Tile::threads / STEP_CHUNKS), place = work.tile.first + row;
      x[i] = row >= work.tile.rows ? -1 : args.sources ? args.sources[place] : place;
    }
    SPLICE_UNROLL
    for (int i = 0; i < Tile::column_loads; ++i) w[i] = work.weight_row(first + i * (Tile::threads / STEP_CHUNKS));
  }

  // Starts the copies of a step, if there is one left.
  SPLICE_DEVICE void fetch(Stage<Tile>& to) {
    if (!work.is_there()) return;
    const splice_cuda_grouped& args = work.args;
    const int first = thread_index() / STEP_CHUNKS, chunk = thread_index() % STEP_CHUNKS;
    const int at = k + chunk * CHUNK_ELEMENTS;
    const auto* rows = static_cast<const uint16_t*>(args.x) + at;
    const auto* matrix = static_cast<const uint16_t*>(args.w) + work.tile.expert * args.n * args.k + at;
    SPLICE_UNROLL
    for (int i = 0; i < Tile::row_loads; ++i) {
      const bool valid = at < args.k && x[i] >= 0;
      const int row = first + i * (Tile::threads / STEP_CHUNKS);
      start_copy(to.x + chunk_place(row, chunk), valid ? rows + x[i] * args.x_stride : args.x, valid);
    }
    SPLICE_UNROLL
    for (int i = 0; i < Tile::column_loads; ++i) {
      const bool valid = at < args.k && w[i] >= 0;
      const int row = first + i * (Tile::threads / STEP_CHUNKS);
      start_copy(to.w + chunk_place(row, chunk), valid ? matrix + w[i] * args.k : args.w, valid);
    }
    k += STEP;
    if (k < args.k) return;
    k = 0;
    work.advance();
    open();
  }
};

template <class Tile>
SPLICE_DEVICE void multiply(const Stage<Tile>& stage, int first_row, int first_column, Sums<Tile>& sums) {
  const int lane = thread_index() % WARP, matrix = lane / 8, row = lane % 8;
  SPLICE_UNROLL
  for (int step = 0; step < STEP / 16; ++step) {
    uint32_t x[Tile::row_fragments][4];
    SPLICE_UNROLL
    for (int r = 0; r < Tile::row_fragments; ++r)
      load_matrices(x[r], stage.x + chunk_place(first_row + r * 16 + matrix % 2 * 8 + row, 2 * step + matrix / 2));
    SPLICE_UNROLL
    for (int c = 0; c < Tile::column_fragments; c += 2) {
      uint32_t w[4];
      load_matrices(w, stage.w + chunk_place(first_column + (c + matrix / 2) * 8 + row, 2 * step + matrix % 2));
      SPLICE_UNROLL
      for (int r = 0; r < Tile::row_fragments; ++r) {
        multiply_fragments(sums[r][c], x[r], w[0], w[1]);
        multiply_fragments(sums[r][c + 1], x[r], w[2], w[3]);
      }
    }
  }
}

template <class Tile, bool is_gated>
SPLICE_KERNEL __launch_bounds__(Tile::threads, Tile::blocks) multiply_groups(splice_cuda_grouped args) {
  auto* stages = reinterpret_cast<Stage<Tile>*>(shared_memory());
  const int warp = thread_index() / WARP, row_warp = warp / Tile::column_warps, column_warp = warp % Tile::column_warps;
  Loader<Tile, is_gated> loader(args);
  SPLICE_UNROLL
  for (int stage = 0; stage < Tile::stages - 1; ++stage) {
    loader.fetch(stages[stage]);
    close_copies();
  }
  int stage = 0, free_stage = Tile::stages - 1;
  for (Work<Tile, is_gated> work(args); work.is_there(); work.advance()) {
    Sums<Tile> sums = {};
    for (int k = 0; k < args.k; k += STEP) {
      wait_copies<Tile::stages - 2>();
      barrier();  // the step has come for all, and nobody reads the stage before it any more
      loader.fetch(stages[free_stage]);
      close_copies();
      multiply<Tile>(stages[stage], row_warp * Tile::warp_rows, column_warp * Tile::warp_columns, sums);
      free_stage = stage;
      stage = stage + 1 == Tile::stages ? 0 : stage + 1;
    }
    store<Tile, is_gated>(work, row_warp, column_warp, sums);
  }
}

template <class Tile, bool is_gated>
int run(const splice_cuda_grouped& args, void* stream) {
  int64_t most = 0;
  if (const int code = multiprocessors("grouped_gemm", most); code != SPLICE_CUDA_OK) return code;
  const int64_t outputs = Work<Tile, is_gated>::outputs, size = is_gated ? args.n / 2 : args.n;
  const int64_t pairs = args.max_tiles * ((size + outputs - 1) / outputs);
  if (pairs + most * Tile::blocks > MAX_GRID_X) return fail(SPLICE_CUDA_INVALID, "grouped_gemm: more tiles than 31 bits count");
  most *= Tile::blocks;
  return launch("grouped_gemm", multiply_groups<Tile, is_gated>, {pairs < most ? pairs : most}, Tile::threads,
                Tile::stages * sizeof(Stage<Tile>), stream, args);
}

template <class Tile>
int run(const splice_cuda_grouped& args, void* stream) {
  return args.activation < 0 ? run<Tile, false>(args, stream) : run<Tile, true>(args, stream);
}

using Few = Tile<16, 64, 1, 4, 5, 4>;
using Some = Tile<64, 128, 2, 4, 4, 2>;
using Many = Tile<128, 128, 2, 4, 3, 2>;

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_grouped_gemm(const splice_cuda_grouped* args, void* stream) {
  using namespace splice::cuda;
  const splice_cuda_grouped& a = *args;
  const int whole = a.activation < 0 ? 8 : 16;
  if (a.k <= 0 || a.n <= 0 || a.k > MAX_SIZE || a.n > MAX_SIZE || a.k % 8 || a.n % whole || a.x_stride % 8 || a.max_tiles < 0)
    return fail(SPLICE_CUDA_INVALID, "grouped_gemm: k %lld, n %lld and x_stride %lld, expected multiples of 8 up to %d, n of %d",
                static_cast<long long>(a.k), static_cast<long long>(a.n), static_cast<long long>(a.x_stride), MAX_SIZE, whole);
  if (!aligned(a.x) || !aligned(a.w) || !aligned(a.y) || !aligned(a.bias))
    return fail(SPLICE_CUDA_INVALID, "grouped_gemm: x, w, y and bias must be aligned to 16 bytes");
  if (a.activation > SPLICE_CUDA_SWIGLU_OAI)
    return fail(SPLICE_CUDA_INVALID, "grouped_gemm: activation %d, expected at most %d", a.activation, SPLICE_CUDA_SWIGLU_OAI);
  if (a.tile_rows == 16) return run<Few>(a, stream);
  if (a.tile_rows == 64) return run<Some>(a, stream);
  if (a.tile_rows == 128) return run<Many>(a, stream);
  return fail(SPLICE_CUDA_INVALID, "grouped_gemm: tiles of %d rows, expected 16, 64 or 128", a.tile_rows);
}
