// Paged causal attention of many query rows. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Does 4·head_dim operations a row and visible key on the matrix units, and a special function and some eight others a row
// and key beside them. Reads queries once, and each tile of 64 keys and values once for 128 query rows (heads of a group × tokens):
// 128 operations a byte, from the second-level cache mostly. Bound by the matrix units. mma.sync reaches some 60 % of what
// wgmma does on Hopper, which is the ceiling of this kernel there.
//
// One block of eight warps takes 128 rows of one KV head, each warp 16 of them and all tiles; keys and values come by asynchronous
// copies, two tiles at a time, or one where the GPU gives a block less shared memory than two of head_dim 256 need. Of head_dim 256 a
// block takes 64 rows, and two warps share 16 of them: each multiplies half the keys of a tile and adds up half the dimensions, since all
// of them are more accumulators than a thread has registers, and they exchange scores through the memory of the keys, which by then are
// done with. A row is computed as in decode_attention.cu, to the bit: the parts of spans are joined in registers instead of memory.
//
// Counted in the machine code for sm_90, not measured: at head_dim 128 a tile is 510 instructions a warp, 1020 issue slots of a
// multiprocessor, where its 1024 matrix instructions take some 1700 cycles.
#include "gathered_rows.h"
#include "launch.h"

namespace splice::cuda {
namespace {

constexpr int WARPS = 8, THREADS = WARPS * WARP;

// How many warps share a fragment of rows.
template <int head_dim>
constexpr int SHARING = head_dim > 128 ? 2 : 1;
template <int head_dim>
constexpr int BLOCK_ROWS = WARPS / SHARING<head_dim> * FRAGMENT_ROWS;

template <int head_dim, int stages>
struct Shared {
  static constexpr int row_chunks = ROW_CHUNKS<head_dim>, tile_chunks = TILE_KEYS * row_chunks;
  static_assert(SHARING<head_dim> == 1 || BLOCK_ROWS<head_dim> * SCORE_STRIDE * sizeof(float) <= tile_chunks * sizeof(Chunk));
  Chunk queries[BLOCK_ROWS<head_dim> * row_chunks];
  Chunk keys[stages][tile_chunks], values[stages][tile_chunks];
  SpanBlocks blocks[2];  // of even and odd spans
};

// Block (x, y, z): the x-th last rows of KV head y and sequence z; those that see most go first.
template <int head_dim, int stages>
SPLICE_KERNEL __launch_bounds__(THREADS, 1) attend_rows(splice_cuda_attention args, int shift) {
  auto& shared = *reinterpret_cast<Shared<head_dim, stages>*>(shared_memory());
  const int64_t sequence = block_z();
  const QueryRows rows(args, sequence, static_cast<uint32_t>(block_y()));
  const uint32_t first_row = static_cast<uint32_t>(grid_x() - 1 - block_x()) * BLOCK_ROWS<head_dim>;
  if (first_row >= rows.count) return;
  const int end = Sight(rows, first_row + BLOCK_ROWS<head_dim> - 1).high, begin = Sight(rows, first_row).low / TILE_KEYS;
  const int tiles = (end + TILE_KEYS - 1) / TILE_KEYS;

  constexpr int sharing = SHARING<head_dim>, columns = TILE_COLUMNS / sharing, fragments = head_dim / FRAGMENT_COLUMNS / sharing;
  const int lane = thread_index() % WARP, warp = thread_index() / WARP / sharing, share = thread_index() / WARP % sharing;
  const uint32_t own_row = first_row + warp * FRAGMENT_ROWS;
  const Sight sight[2] = {{rows, own_row + lane / 4}, {rows, own_row + lane / 4 + 8}};
  const Sight own_first(rows, own_row), own_last(rows, own_row + FRAGMENT_ROWS - 1);
  const int own_end = own_row < rows.count ? own_last.high : 0;  // of a warp without rows, 0

  const auto start = [&](int tile) {
    if (tile < tiles) {
      const int span = tile / SPAN_TILES, within = tile % SPAN_TILES, at = tile % stages;
      start_tile<head_dim, THREADS>(args, shared.blocks[span % 2], shift, within, end - span * SPAN_KEYS, shared.keys[at], shared.values[at]);
    }
    close_copies();
  };
  const auto read = [&](int span) { read_blocks(args, sequence, rows.kv_head, span, shift, end, shared.blocks[span % 2]); };
  read(begin / SPAN_TILES);
  read(begin / SPAN_TILES + 1);
  barrier();
  start_queries<head_dim>(rows, first_row, BLOCK_ROWS<head_dim>, shared.queries);
  for (int i = 0; i < stages; ++i) start(begin + i);

  const Chunk* queries = shared.queries + warp * FRAGMENT_ROWS * ROW_CHUNKS<head_dim>;
  const Scoring scoring(args);
  Gathered<fragments> gathered;
  RowState state;
  float acc[fragments][4] = {};
  for (int tile = begin; tile < tiles; ++tile) {
    wait_copies<stages - 1>();
    // The first tile of a span is started after this one: by now nobody reads the blocks of the span before the last any more.
    const int next = tile + stages;
    if (next % SPAN_TILES == 0 && next < tiles) read(next / SPAN_TILES);
    barrier();
    const int first_key = tile * TILE_KEYS;
    const bool seen = first_key < own_end && first_key + TILE_KEYS > own_first.low;
    Chunk* keys = shared.keys[tile % stages];
    float scores[TILE_COLUMNS][4] = {};
    if constexpr (sharing == 1) {
      if (seen) multiply_keys<head_dim, columns>(queries, keys, 0, scores);
    } else {
      float part[columns][4] = {};
      auto* exchanged = reinterpret_cast<float*>(keys) + warp * FRAGMENT_ROWS * SCORE_STRIDE;
      if (seen) multiply_keys<head_dim, columns>(queries, keys, share * columns, part);
      barrier();  // everybody is done with the keys
      if (seen) write_scores(exchanged, share * columns, part);
      barrier();
      if (seen) read_scores(exchanged, scores);
    }
    if (seen) {
      float rescale[2];
      uint32_t weights[TILE_STEPS][4];
      soften(scoring, first_key, sight, scores, state, rescale);
      pack_weights(scores, weights);
      multiply_values<head_dim, fragments>(weights, rescale, shared.values[tile % stages], share * fragments, acc);
    }
    if (tile % SPAN_TILES == SPAN_TILES - 1 || tile == tiles - 1) {
      Shares shares[2];
      gathered.close_span(state, shares);
      gathered.add(acc, shares);
      SPLICE_UNROLL
      for (int i = 0; i < 4 * fragments; ++i) acc[i / 4][i % 4] = 0.0f;
    }
    barrier();  // everybody is done with this stage
    start(next);
  }
  wait_copies<0>();
  gathered.template write<head_dim>(rows, own_row, share * fragments);
}

template <int head_dim, int stages>
int attend(const splice_cuda_attention& args, void* stream) {
  const int64_t rows = args.max_query * (args.q_heads / args.kv.kv_heads);
  const GridSize grid{(rows + BLOCK_ROWS<head_dim> - 1) / BLOCK_ROWS<head_dim>, args.kv.kv_heads, args.sequences};
  return launch("prefill_attention", attend_rows<head_dim, stages>, grid, THREADS, sizeof(Shared<head_dim, stages>), stream, args,
                block_shift(args.kv.block_tokens));
}

template <int head_dim>
int attend(const splice_cuda_attention& args, void* stream) {
  if constexpr (sizeof(Shared<head_dim, 2>) > SHARED_OF_SMALL) {
    static_assert(sizeof(Shared<head_dim, 1>) <= SHARED_OF_SMALL);
    DeviceLimits limits;
    if (const int code = read_limits("prefill_attention", limits); code != SPLICE_CUDA_OK) return code;
    if (static_cast<int64_t>(sizeof(Shared<head_dim, 2>)) > limits.shared_bytes) return attend<head_dim, 1>(args, stream);
  }
  return attend<head_dim, 2>(args, stream);
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_prefill_attention(const splice_cuda_attention* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows == 0) return SPLICE_CUDA_OK;
  const int code = check_attention("prefill_attention", *args);
  if (code != SPLICE_CUDA_OK) return code;
  switch (args->kv.head_dim) {
    case 64: return attend<64>(*args, stream);
    case 80: return attend<80>(*args, stream);
    case 96: return attend<96>(*args, stream);
    case 128: return attend<128>(*args, stream);
    case 256: return attend<256>(*args, stream);
    default:
      return fail(SPLICE_CUDA_UNSUPPORTED, "prefill_attention: head_dim %lld, expected 64, 80, 96, 128 or 256",
                  static_cast<long long>(args->kv.head_dim));
  }
}
