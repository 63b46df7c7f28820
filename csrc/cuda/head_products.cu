// A product for every head of every row: how queries reach the side of latents and latents the side of values (absorbed attention).
// Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Does 2·k·n operations a row and head; moves 2·k·n bytes a head once for every tile of rows, of which all but the first find them in
// the second-level cache, and 2·(k + n) a row and head. At 128 heads of 128 × 512 that is 16 MiB of weights: bound by memory to some
// 200 rows, by the matrix units beyond, where mma.sync reaches some 60 % of wgmma.
//
// A block of eight warps takes 16 or 128 rows and 128 columns of one head, k in steps of 64 by asynchronous copies, three steps at a
// time. Each output is one chain over k in ascending order, 16 at a time, whatever the tile: a row's bits do not depend on the others.
#include "attention_tile.h"

namespace splice::cuda {
namespace {

constexpr int WARPS = 8, THREADS = WARPS * WARP, COLUMNS = 128, STEP = 64, STAGES = 3;
constexpr int FEW_ROWS = 32;  // up to so many, reading weights once more costs less than products of absent rows

// `row_warps` warps one below the other, each of `row_fragments` fragments of rows; `by_columns`: weights are [n, k], else [k, n].
template <int row_warps, int row_fragments, bool by_columns>
struct HeadTile {
  static constexpr int rows = row_warps * row_fragments * FRAGMENT_ROWS, row_chunks = STEP / CHUNK_ELEMENTS;
  static constexpr int fragments = COLUMNS / (WARPS / row_warps) / FRAGMENT_COLUMNS;  // of columns, a warp
  Chunk x[STAGES][rows * row_chunks], w[STAGES][COLUMNS * row_chunks];
};

// Starts copies of `count` rows of `width` elements of a matrix from `from` on, as far as there are `rows` and `columns` left; what is
// past them is zeros. A thread keeps to one chunk of rows that are a step apart.
template <int width, int count>
SPLICE_DEVICE void start_rows(const uint16_t* from, int64_t stride, int rows, int columns, Chunk* to) {
  constexpr int chunks = width / CHUNK_ELEMENTS, step = THREADS / chunks;
  static_assert(step % 8 == 0 && (count % step == 0 || count < step));
  const int row = thread_index() / chunks, chunk = thread_index() % chunks;
  if (count < step && row >= count) return;
  const uint16_t* source = from + row * stride + chunk * CHUNK_ELEMENTS;
  Chunk* place = to + chunk_place<width>(row, chunk);
  const int left = chunk * CHUNK_ELEMENTS < columns ? rows - row : 0;
  SPLICE_ROLLED  // unrolled it takes registers that products need
  for (int down = 0; down < count; down += step, source += step * stride)
    start_copy(place + down * chunks, down < left ? source : from, down < left);
}

template <class Tile, bool by_columns>
SPLICE_DEVICE void start_step(const splice_cuda_head_product& args, int first_row, int first_column, int64_t head, int from, int stage,
                              Tile& tile) {
  const int rows = static_cast<int>(args.rows) - first_row, n = static_cast<int>(args.n) - first_column, k = static_cast<int>(args.k) - from;
  const auto* x = static_cast<const uint16_t*>(args.x) + first_row * args.x_row_stride + head * args.x_head_stride + from;
  start_rows<STEP, Tile::rows>(x, args.x_row_stride, rows, k, tile.x[stage]);
  const auto* w = static_cast<const uint16_t*>(args.w) + head * args.w_head_stride;
  if constexpr (by_columns)
    start_rows<STEP, COLUMNS>(w + first_column * args.w_row_stride + from, args.w_row_stride, n, k, tile.w[stage]);
  else
    start_rows<COLUMNS, STEP>(w + from * args.w_row_stride + first_column, args.w_row_stride, k, n, tile.w[stage]);
}

// Block (x, y, z): row tile x, columns y, head z.
template <int row_warps, int row_fragments, bool by_columns>
SPLICE_KERNEL __launch_bounds__(THREADS, 2) multiply_heads(splice_cuda_head_product args) {
  using Tile = HeadTile<row_warps, row_fragments, by_columns>;
  auto& tile = *reinterpret_cast<Tile*>(shared_memory());
  const int first_row = static_cast<int>(block_x()) * Tile::rows, first_column = static_cast<int>(block_y()) * COLUMNS;
  const int64_t head = block_z();
  const int lane = thread_index() % WARP, warp = thread_index() / WARP, matrix = lane / 8, row = lane % 8;
  const int own_row = warp % row_warps * row_fragments * FRAGMENT_ROWS, own_column = warp / row_warps * Tile::fragments * FRAGMENT_COLUMNS;
  const int steps = (static_cast<int>(args.k) + STEP - 1) / STEP;
  const auto start = [&](int step) {
    if (step < steps) start_step<Tile, by_columns>(args, first_row, first_column, head, step * STEP, step % STAGES, tile);
    close_copies();
  };
  for (int step = 0; step < STAGES - 1; ++step) start(step);
  float acc[row_fragments][Tile::fragments][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_copies<STAGES - 2>();
    barrier();
    start(step + STAGES - 1);  // where the step before was: everybody is done with it
    const Chunk *x = tile.x[step % STAGES], *w = tile.w[step % STAGES];
    const SharedRow<STEP> left(x, own_row + matrix % 2 * 8 + row, matrix / 2);
    const SharedRow<STEP> columns(w, own_column + matrix / 2 * 8 + row, matrix % 2);
    const auto across = value_row<COLUMNS>(w, own_column / CHUNK_ELEMENTS);
    SPLICE_UNROLL
    for (int part = 0; part < STEP / 16; ++part) {
      uint32_t a[row_fragments][4];
      SPLICE_UNROLL
      for (int i = 0; i < row_fragments; ++i)
        load_matrices(a[i], left.at(2 * part, i * FRAGMENT_ROWS));
      SPLICE_UNROLL
      for (int fragment = 0; fragment < Tile::fragments; fragment += 2) {
        uint32_t b[4];
        if constexpr (by_columns)
          load_matrices(b, columns.at(2 * part, fragment * FRAGMENT_COLUMNS));
        else
          load_matrices_transposed(b, across.at(fragment, part * 16));
        SPLICE_UNROLL
        for (int i = 0; i < row_fragments; ++i) {
          multiply_fragments(acc[i][fragment], a[i], b[0], b[1]);
          multiply_fragments(acc[i][fragment + 1], a[i], b[2], b[3]);
        }
      }
    }
  }
  wait_copies<0>();
  SPLICE_UNROLL
  for (int i = 0; i < 2 * row_fragments; ++i) {
    const int at = first_row + own_row + i * 8 + lane / 4;
    if (at >= args.rows) continue;
    auto* to = static_cast<uint16_t*>(args.y) + at * args.y_row_stride + head * args.y_head_stride;
    SPLICE_UNROLL
    for (int fragment = 0; fragment < Tile::fragments; ++fragment) {
      const int column = first_column + own_column + fragment * FRAGMENT_COLUMNS + lane % 4 * 2;
      const float* pair = acc[i / 2][fragment] + i % 2 * 2;
      if (column < args.n) *reinterpret_cast<uint32_t*>(to + column) = to_bf16_pair(pair[0], pair[1]);
    }
  }
}

template <int row_warps, int row_fragments, bool by_columns>
int multiply(const splice_cuda_head_product& args, void* stream) {
  using Tile = HeadTile<row_warps, row_fragments, by_columns>;
  const GridSize grid{(args.rows + Tile::rows - 1) / Tile::rows, (args.n + COLUMNS - 1) / COLUMNS, args.heads};
  return launch("head_products", multiply_heads<row_warps, row_fragments, by_columns>, grid, THREADS, sizeof(Tile), stream, args);
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_head_products(const splice_cuda_head_product* args, void* stream) {
  using namespace splice::cuda;
  const int64_t sizes[] = {args->k,            args->n,            args->x_row_stride, args->x_head_stride, args->w_row_stride,
                           args->w_head_stride, args->y_row_stride, args->y_head_stride};
  for (const int64_t size : sizes)
    if (size % CHUNK_ELEMENTS)
      return fail(SPLICE_CUDA_INVALID, "head_products: a size or stride of %lld, expected a multiple of 8", static_cast<long long>(size));
  constexpr int64_t most = int64_t{1} << 30;
  if (args->rows < 0 || args->heads <= 0 || args->k <= 0 || args->n <= 0 || args->rows > most || args->k > most || args->n > most)
    return fail(SPLICE_CUDA_INVALID, "head_products: %lld rows of %lld heads, %lld to %lld, expected sizes above 0 and to 2^30",
                static_cast<long long>(args->rows), static_cast<long long>(args->heads), static_cast<long long>(args->k),
                static_cast<long long>(args->n));
  if (!aligned(args->x) || !aligned(args->w) || !aligned(args->y))
    return fail(SPLICE_CUDA_INVALID, "head_products: x, w and y must be aligned to 16 bytes");
  const bool few = args->rows <= FEW_ROWS;
  if (args->w_is_columns) return few ? multiply<1, 1, true>(*args, stream) : multiply<4, 2, true>(*args, stream);
  return few ? multiply<1, 1, false>(*args, stream) : multiply<4, 2, false>(*args, stream);
}
