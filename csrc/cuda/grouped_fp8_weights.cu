// Products of each expert's rows, in bfloat16 as they are, with its own weights in e4m3 codes, scaled per row or per 128×128 block.
// Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves every chosen expert's n·k weights, a byte each, its rows once a tile of columns and y once; does 2·n·k operations a row. With r
// rows an expert that is 2·r operations a byte of weights: bound by the weights' bytes up to some hundred rows, which is all of decode,
// above by mma.sync and by the three instructions that make a code bfloat16, once in every tile of rows.
//
// Work is divided as in grouped_gemm.cu: as many blocks as the device holds take pairs of (tile of rows, tile of columns) in turn, and
// copies run ahead over the ends of pairs, `stages` steps of 128 elements of k. Gate and up columns of the same outputs lie in the same
// thread, which applies the activation to the rounded products.
//
// An output is that of gemm_fp8_weights, to the bit: one chain over k in steps of 128 (fp8_stage.h), scales of blocks by
// sum = fused(step's own sum, scale, sum), scales of rows at the end; rounded once, and a bias added to that sum before.
#include "fp8_stage.h"
#include "grouped.h"

namespace splice::cuda {
namespace {

constexpr int MAX_SIZE = 1 << 24;

template <int rows_, int columns_, int row_warps_, int column_warps_, int stages_, int blocks_>
struct Tile {
  static constexpr int rows = rows_, columns = columns_, row_warps = row_warps_, column_warps = column_warps_, stages = stages_;
  static constexpr int blocks = blocks_;  // on a multiprocessor
  static constexpr int threads = row_warps * column_warps * WARP, warp_rows = rows / row_warps, warp_columns = columns / column_warps;
  static constexpr int row_fragments = warp_rows / FRAGMENT_ROWS, column_fragments = warp_columns / FRAGMENT_COLUMNS;
  static constexpr int row_loads = rows * X_CHUNKS / threads, column_loads = columns * W_CHUNKS / threads;
  static_assert(rows * X_CHUNKS % threads == 0 && columns * W_CHUNKS % threads == 0 && column_fragments % 2 == 0);
  static_assert(STEP % columns == 0);  // so that a tile's gates share the scale of a block, and its ups another
  struct Stage {
    Chunk x[rows * X_CHUNKS], w[columns * W_CHUNKS];
  };
};

// Runs ahead of the products: which step of which work a thread copies next, and from where.
template <class T, bool is_gated>
struct Loader {
  int x[T::row_loads], w[T::column_loads];  // rows of x, and of the expert's matrix; −1: zeros
  Work<T, is_gated> work;
  int k = 0;

  SPLICE_DEVICE explicit Loader(const splice_cuda_grouped& args) : work(args) { open(); }

  SPLICE_DEVICE static int x_row(int i) { return thread_index() / X_CHUNKS + i * (T::threads / X_CHUNKS); }
  SPLICE_DEVICE static int w_row(int i) { return thread_index() / W_CHUNKS + i * (T::threads / W_CHUNKS); }

  SPLICE_DEVICE void open() {
    if (!work.is_there()) return;
    const splice_cuda_grouped& args = work.args;
    SPLICE_UNROLL
    for (int i = 0; i < T::row_loads; ++i) {
      const int place = work.tile.first + x_row(i);
      x[i] = x_row(i) >= work.tile.rows ? -1 : args.sources ? args.sources[place] : place;
    }
    SPLICE_UNROLL
    for (int i = 0; i < T::column_loads; ++i) w[i] = work.weight_row(w_row(i));
  }

  // Starts the copies of a step, if there is one left.
  SPLICE_DEVICE void fetch(typename T::Stage& to) {
    if (!work.is_there()) return;
    const splice_cuda_grouped& args = work.args;
    const int x_chunk = thread_index() % X_CHUNKS, w_chunk = thread_index() % W_CHUNKS;
    const int x_at = k + x_chunk * CHUNK_ELEMENTS, w_at = k + w_chunk * CHUNK_BYTES;
    const auto* rows = static_cast<const uint16_t*>(args.x) + x_at;
    const auto* matrix = static_cast<const uint8_t*>(args.w) + work.tile.expert * args.n * args.k + w_at;
    SPLICE_UNROLL
    for (int i = 0; i < T::row_loads; ++i) {
      const bool valid = x_at < args.k && x[i] >= 0;
      start_copy(to.x + x_place(x_row(i), x_chunk), valid ? rows + x[i] * args.x_stride : args.x, valid);
    }
    SPLICE_UNROLL
    for (int i = 0; i < T::column_loads; ++i) {
      const bool valid = w_at < args.k && w[i] >= 0;
      start_copy(to.w + w_place(w_row(i), w_chunk), valid ? matrix + w[i] * args.k : args.w, valid);
    }
    k += STEP;
    if (k < args.k) return;
    k = 0;
    work.advance();
    open();
  }
};

// Where the scales of a pair's blocks begin: of its gates, or of all its columns, and of its ups.
template <class T, bool is_gated>
SPLICE_DEVICE void open_blocks(const splice_cuda_grouped_codes& args, const Work<T, is_gated>& work, const float* (&scales)[2]) {
  const int64_t across = (args.product.k + STEP - 1) / STEP, down = (work.size + STEP - 1) / STEP;
  scales[0] = args.w_scales + (work.tile.expert * (is_gated ? 2 * down : down) + work.first_output / STEP) * across;
  scales[1] = scales[0] + (is_gated ? down * across : 0);
}

// sums *= the scale of each column's row of W.
template <class T, bool is_gated>
SPLICE_DEVICE void scale_columns(const splice_cuda_grouped_codes& args, const Work<T, is_gated>& work, int first_column, Sums<T>& sums) {
  const float* scales = args.w_scales + work.tile.expert * args.product.n;
  SPLICE_UNROLL
  for (int c = 0; c < T::column_fragments; ++c) {
    SPLICE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int row = work.weight_row(first_column + c * FRAGMENT_COLUMNS + thread_index() % 4 * 2 + i);
      const float scale = row < 0 ? 0.0f : scales[row];
      SPLICE_UNROLL
      for (int r = 0; r < 2 * T::row_fragments; ++r) {
        float& each = sums[r / 2][c][r % 2 * 2 + i];
        each = product(each, scale);
      }
    }
  }
}

template <class T, bool is_gated, bool blocks>
SPLICE_KERNEL __launch_bounds__(T::threads, T::blocks) multiply_groups(splice_cuda_grouped_codes args) {
  auto* stages = reinterpret_cast<typename T::Stage*>(shared_memory());
  const int warp = thread_index() / WARP, row_warp = warp / T::column_warps, column_warp = warp % T::column_warps;
  const int first_row = row_warp * T::warp_rows, first_column = column_warp * T::warp_columns;
  Loader<T, is_gated> loader(args.product);
  SPLICE_UNROLL
  for (int stage = 0; stage < T::stages - 1; ++stage) {
    loader.fetch(stages[stage]);
    close_copies();
  }
  int stage = 0, free_stage = T::stages - 1;
  for (Work<T, is_gated> work(args.product); work.is_there(); work.advance()) {
    const float* scales[2];
    if constexpr (blocks) open_blocks<T, is_gated>(args, work, scales);
    Sums<T> sums = {};
    for (int k = 0; k < args.product.k; k += STEP) {
      wait_copies<T::stages - 2>();
      barrier();  // the step has come for all, and nobody reads the stage before it any more
      loader.fetch(stages[free_stage]);
      close_copies();
      if constexpr (blocks) {
        Sums<T> part = {};
        multiply_stage<T>(stages[stage], first_row, first_column, part);
        const float scale[2] = {scales[0][k / STEP], scales[1][k / STEP]};
        SPLICE_UNROLL
        for (int r = 0; r < T::row_fragments; ++r) {
          SPLICE_UNROLL
          for (int c = 0; c < T::column_fragments; ++c) {
            SPLICE_UNROLL
            for (int i = 0; i < 4; ++i) sums[r][c][i] = fused(part[r][c][i], scale[is_gated && 2 * c >= T::column_fragments], sums[r][c][i]);
          }
        }
      } else {
        multiply_stage<T>(stages[stage], first_row, first_column, sums);
      }
      free_stage = stage;
      stage = stage + 1 == T::stages ? 0 : stage + 1;
    }
    if constexpr (!blocks) scale_columns<T, is_gated>(args, work, first_column, sums);
    store<T, is_gated>(work, row_warp, column_warp, sums);
  }
}

template <class T, bool is_gated>
int run(const splice_cuda_grouped_codes& args, void* stream) {
  int64_t most = 0;
  if (const int code = multiprocessors("grouped_fp8_weights", most); code != SPLICE_CUDA_OK) return code;
  const int64_t outputs = Work<T, is_gated>::outputs, size = is_gated ? args.product.n / 2 : args.product.n;
  const int64_t pairs = args.product.max_tiles * ((size + outputs - 1) / outputs);
  if (pairs + most * T::blocks > MAX_GRID_X) return fail(SPLICE_CUDA_INVALID, "grouped_fp8_weights: more tiles than 31 bits count");
  most *= T::blocks;
  const auto kernel = args.w_scaling == SPLICE_CUDA_BLOCKS ? multiply_groups<T, is_gated, true> : multiply_groups<T, is_gated, false>;
  return launch("grouped_fp8_weights", kernel, {pairs < most ? pairs : most}, T::threads, T::stages * sizeof(typename T::Stage), stream,
                args);
}

template <class T>
int run(const splice_cuda_grouped_codes& args, void* stream) {
  return args.product.activation < 0 ? run<T, false>(args, stream) : run<T, true>(args, stream);
}

using Few = Tile<16, 64, 1, 4, 5, 3>;
using Many = Tile<64, 128, 2, 4, 3, 1>;

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_grouped_fp8_weights(const splice_cuda_grouped_codes* args, void* stream) {
  using namespace splice::cuda;
  const splice_cuda_grouped& a = args->product;
  const int whole = a.activation < 0 ? 8 : 16;
  if (a.k <= 0 || a.n <= 0 || a.k > MAX_SIZE || a.n > MAX_SIZE || a.k % 16 || a.n % whole || a.x_stride % 8 || a.max_tiles < 0)
    return fail(SPLICE_CUDA_INVALID, "grouped_fp8_weights: k %lld, n %lld and x_stride %lld, expected multiples of 16, %d and 8 up to %d",
                static_cast<long long>(a.k), static_cast<long long>(a.n), static_cast<long long>(a.x_stride), whole, MAX_SIZE);
  if (!aligned(a.x) || !aligned(a.w) || !aligned(a.y) || !aligned(a.bias))
    return fail(SPLICE_CUDA_INVALID, "grouped_fp8_weights: x, w, y and bias must be aligned to 16 bytes");
  if (a.activation > SPLICE_CUDA_SWIGLU_OAI)
    return fail(SPLICE_CUDA_INVALID, "grouped_fp8_weights: activation %d, expected at most %d", a.activation, SPLICE_CUDA_SWIGLU_OAI);
  if (args->w_scaling != SPLICE_CUDA_ROWS && args->w_scaling != SPLICE_CUDA_BLOCKS)
    return fail(SPLICE_CUDA_INVALID, "grouped_fp8_weights: scaling %d, expected that of rows or blocks", args->w_scaling);
  if (a.tile_rows == 16) return run<Few>(*args, stream);
  if (a.tile_rows == 64) return run<Many>(*args, stream);
  return fail(SPLICE_CUDA_INVALID, "grouped_fp8_weights: tiles of %d rows, expected 16 or 64", a.tile_rows);
}
