// y = x·(W·scale)ᵀ (+ bias), x in bfloat16 as it is, W in e4m3 codes with scales per tensor, per row or per 128×128 block. For Ampere,
// which has no FP8 units, and for few rows anywhere. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves n·k bytes of W, 2·m·k of x and y once, does 2·m·n·k operations at bfloat16's rate, and three instructions make a code
// bfloat16, once in every tile of rows. Bound by W's bytes up to some 100 rows, on Hopper nearly as much by those instructions and by
// reads of x from shared memory; above by mma.sync, which reaches some 60 % of what wgmma does there.
//
// One chain over k per output in ascending steps of 128, never split. A step is twice four products of fragments, of 64 of k; product
// s of the four takes elements 16·q + 4·s + 0…3, q = 0…3, which are what a thread finds in 16 bytes of its row. Scales of blocks:
// a step's sum begins at zero and sum = fused(that, scale, sum); then y = round(sum + bias). Other scales: y = round(fused(sum, scale,
// bias)). Elements beyond k are zeros. Tiles differ in nothing but which outputs are computed side by side.
#include "fp8_stage.h"
#include "gemm_fp8.h"

namespace splice::cuda {
namespace {

template <int tile_rows, int tile_columns, int warps_down, int warps_across, int stage_count>
struct Tile {
  static constexpr int rows = tile_rows, columns = tile_columns, stages = stage_count, across = warps_across;
  static constexpr int threads = warps_down * warps_across * WARP;
  static constexpr int warp_rows = rows / warps_down, warp_columns = columns / warps_across;
  static constexpr int row_fragments = warp_rows / FRAGMENT_ROWS, column_fragments = warp_columns / FRAGMENT_COLUMNS;
  static constexpr int x_copies = rows * X_CHUNKS / threads, w_copies = columns * W_CHUNKS / threads;  // a thread's, of a stage
  static_assert(rows * X_CHUNKS % threads == 0 && columns * W_CHUNKS % threads == 0);
  static_assert(STEP % columns == 0);  // so that a tile's columns share the scale of a block
  struct Stage {
    Chunk x[rows * X_CHUNKS], w[columns * W_CHUNKS];
  };
};

// A thread keeps to one chunk of rows of each operand, so that from step to step its places in shared memory stay and its addresses move
// alike.
template <class T>
SPLICE_DEVICE void start_stage(const splice_cuda_gemm_fp8& args, int64_t first_row, int64_t first_column, int64_t first_k,
                               typename T::Stage& stage) {
  const int x_chunk = thread_index() % X_CHUNKS, w_chunk = thread_index() % W_CHUNKS;
  const int64_t x_at = first_k + x_chunk * CHUNK_ELEMENTS, w_at = first_k + w_chunk * CHUNK_BYTES;
  SPLICE_UNROLL
  for (int i = 0; i < T::x_copies; ++i) {
    const int row = thread_index() / X_CHUNKS + i * (T::threads / X_CHUNKS);
    const bool valid = first_row + row < args.m && x_at < args.k;
    const auto* from = static_cast<const uint16_t*>(args.x) + (valid ? (first_row + row) * args.x_stride + x_at : 0);
    start_copy(stage.x + x_place(row, x_chunk), from, valid);
  }
  SPLICE_UNROLL
  for (int i = 0; i < T::w_copies; ++i) {
    const int row = thread_index() / W_CHUNKS + i * (T::threads / W_CHUNKS);
    const bool valid = first_column + row < args.n && w_at < args.k;
    const auto* from = static_cast<const uint8_t*>(args.w) + (valid ? (first_column + row) * args.w_stride + w_at : 0);
    start_copy(stage.w + w_place(row, w_chunk), from, valid);
  }
}

template <class T, bool blocks>
SPLICE_KERNEL __launch_bounds__(T::threads, 1) multiply_weights(splice_cuda_gemm_fp8 args) {
  auto* stages = reinterpret_cast<typename T::Stage*>(shared_memory());
  const int lane = thread_index() % WARP, warp = thread_index() / WARP;
  const int64_t first_row = block_y() * T::rows, first_column = block_x() * T::columns;
  const int row = warp / T::across * T::warp_rows, column = warp % T::across * T::warp_columns;
  const int64_t steps = (args.k + STEP - 1) / STEP;
  const auto start = [&](int64_t step) {
    if (step < steps) start_stage<T>(args, first_row, first_column, step * STEP, stages[step % T::stages]);
    close_copies();
  };
  for (int step = 0; step < T::stages - 1; ++step) start(step);
  const float* block_scales = args.w_scales + first_column / STEP * steps;
  float sums[T::row_fragments][T::column_fragments][4] = {};
  for (int64_t step = 0; step < steps; ++step) {
    wait_copies<T::stages - 2>();
    barrier();  // this stage is there, and everybody is done with the one before, which is filled next
    start(step + T::stages - 1);
    const auto& stage = stages[step % T::stages];
    if constexpr (blocks) {
      float part[T::row_fragments][T::column_fragments][4] = {};
      multiply_stage<T>(stage, row, column, part);
      const float scale = block_scales[step];
      SPLICE_UNROLL
      for (int down = 0; down < T::row_fragments; ++down) {
        SPLICE_UNROLL
        for (int across = 0; across < T::column_fragments; ++across) {
          SPLICE_UNROLL
          for (int i = 0; i < 4; ++i) sums[down][across][i] = fused(part[down][across][i], scale, sums[down][across][i]);
        }
      }
    } else {
      multiply_stage<T>(stage, row, column, sums);
    }
  }
  wait_copies<0>();
  SPLICE_UNROLL
  for (int across = 0; across < T::column_fragments; ++across) {
    const int64_t at = first_column + column + across * FRAGMENT_COLUMNS + lane % 4 * 2;
    if (at >= args.n) continue;
    float scale[2] = {1.0f, 1.0f}, bias[2] = {0.0f, 0.0f};
    SPLICE_UNROLL
    for (int i = 0; i < 2; ++i) {
      if constexpr (!blocks) scale[i] = args.w_scales[args.w_scaling == SPLICE_CUDA_ROWS ? at + i : 0];
      if (args.bias) bias[i] = from_bf16(static_cast<const uint16_t*>(args.bias)[at + i]);
    }
    SPLICE_UNROLL
    for (int i = 0; i < 2 * T::row_fragments; ++i) {
      const int64_t to = first_row + row + lane / 4 + i * 8;
      const float* pair = sums[i / 2][across] + i % 2 * 2;
      if (to < args.m)
        *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(args.y) + to * args.y_stride + at) =
            to_bf16_pair(fused(pair[0], scale[0], bias[0]), fused(pair[1], scale[1], bias[1]));
    }
  }
}

using Few = Tile<16, 32, 1, 4, 6>;
using Many = Tile<64, 128, 2, 4, 3>;

template <class T>
int multiply(const splice_cuda_gemm_fp8& args, void* stream) {
  const auto kernel = args.w_scaling == SPLICE_CUDA_BLOCKS ? multiply_weights<T, true> : multiply_weights<T, false>;
  const GridSize grid{(args.n + T::columns - 1) / T::columns, (args.m + T::rows - 1) / T::rows};
  return launch("gemm_fp8_weights", kernel, grid, T::threads, T::stages * sizeof(typename T::Stage), stream, args);
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_gemm_fp8_weights(const splice_cuda_gemm_fp8* args, void* stream) {
  using namespace splice::cuda;
  const int code = check_gemm_fp8("gemm_fp8_weights", *args, 2);
  if (code != SPLICE_CUDA_OK) return code;
  return args->tile == 0 ? multiply<Few>(*args, stream) : multiply<Many>(*args, stream);
}
