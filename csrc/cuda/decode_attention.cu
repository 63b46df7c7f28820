// Paged attention of few query rows a sequence over many keys. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves, a sequence and KV head, 4·head_dim bytes a key once for up to 16 query rows (those of a group of heads, times tokens), and
// 8·(head_dim + 2) bytes a row and span of 256 keys for the parts that the second kernel joins: 3 % more at 4 heads a group and
// head_dim 128. Does 4·head_dim operations a row and key, on fragments of 16 rows. Bound by memory.
//
// One block of four warps takes one span: keys and values come in tiles of 64 by asynchronous copies, two tiles at a time, or one where
// the GPU gives a block less shared memory than two of head_dim 256 need: the same arithmetic, with less of memory's time hidden. In a
// tile each warp multiplies 16 keys with all rows, all share their scores and soften them alike, and each adds up a quarter of the
// dimensions. A grid narrower than the spans walks them with a stride.
#include "attention_tile.h"
#include "launch.h"

namespace splice::cuda {
namespace {

constexpr int WARPS = 4, THREADS = WARPS * WARP, MAX_BLOCKS_OF_SPANS = 256;

template <int head_dim, int stages>
struct Shared {
  static constexpr int row_chunks = ROW_CHUNKS<head_dim>, tile_chunks = TILE_KEYS * row_chunks;
  Chunk queries[FRAGMENT_ROWS * row_chunks];
  Chunk keys[stages][tile_chunks], values[stages][tile_chunks];
  float scores[FRAGMENT_ROWS * SCORE_STRIDE];
  int32_t blocks[MAX_SPAN_BLOCKS];
};

// Parts of row r (of q's rows of heads) and span s: maximum and sum at [2·(r·spans + s)], accumulators behind all those.
struct Parts {
  float *sums, *accumulators;
  int64_t spans;

  SPLICE_BOTH Parts(const splice_cuda_attention& args)
      : sums(static_cast<float*>(args.workspace)), accumulators(sums + 2 * args.rows * args.q_heads * spans_of(args.max_context)),
        spans(spans_of(args.max_context)) {}
  SPLICE_BOTH static int64_t spans_of(int64_t context) { return (context + SPAN_KEYS - 1) / SPAN_KEYS; }
  SPLICE_BOTH float* sum_of(int64_t row, int64_t span) const { return sums + 2 * (row * spans + span); }
  SPLICE_BOTH float* accumulator(int64_t row, int64_t span, int64_t head_dim) const { return accumulators + (row * spans + span) * head_dim; }
};

// Fragments of dimensions a warp adds up: pairs, so that where head_dim has fewer the last warps have less to do.
template <int head_dim>
constexpr int OWN_FRAGMENTS = (head_dim / (2 * FRAGMENT_COLUMNS) + WARPS - 1) / WARPS * 2;

template <int head_dim, int stages>
SPLICE_DEVICE void attend_span(const splice_cuda_attention& args, const QueryRows& rows, int64_t sequence, int64_t first_row, int64_t last_row,
                               int64_t span, int shift, int64_t low, int64_t end, Shared<head_dim, stages>& shared) {
  constexpr int fragments = OWN_FRAGMENTS<head_dim>;
  const int lane = thread_index() % WARP, warp = thread_index() / WARP;
  const Sight sight[2] = {{rows, first_row + lane / 4}, {rows, first_row + lane / 4 + 8}};
  const Sight first_sight(rows, first_row), last_sight(rows, last_row);
  const Scoring scoring(args);
  const int64_t first = span * SPAN_KEYS, left = (end < first + SPAN_KEYS ? end - first : SPAN_KEYS);
  const int tiles = static_cast<int>((left + TILE_KEYS - 1) / TILE_KEYS);
  const int begin = low > first ? static_cast<int>((low - first) / TILE_KEYS) : 0;

  barrier();  // the span before is done with shared memory
  read_blocks(args, sequence, span, shift, end, shared.blocks);
  barrier();
  const auto start = [&](int tile) {
    if (tile < tiles) {
      start_tile<head_dim>(args, shared.blocks, shift, rows.kv_head, 0, span, tile, end, shared.keys[tile % stages]);
      start_tile<head_dim>(args, shared.blocks, shift, rows.kv_head, 1, span, tile, end, shared.values[tile % stages]);
    }
    close_copies();
  };
  start_queries<head_dim>(rows, first_row, FRAGMENT_ROWS, shared.queries);
  for (int i = 0; i < stages; ++i) start(begin + i);

  RowState state;
  float acc[fragments][4] = {};
  for (int tile = begin; tile < tiles; ++tile) {
    wait_copies<stages - 1>();
    barrier();
    float own[2][4] = {};
    multiply_keys<head_dim, 2>(shared.queries, shared.keys[tile % stages], warp * 2, own);
    write_scores(shared.scores, warp * 2, own);
    barrier();
    float scores[TILE_COLUMNS][4], rescale[2];
    uint32_t weights[TILE_STEPS][4];
    read_scores(shared.scores, scores);
    const int first_key = static_cast<int>(first) + tile * TILE_KEYS;
    soften(scoring, first_key, sight, sees_whole(first_sight, last_sight, first_key), scores, state, rescale);
    pack_weights(scores, weights);
    multiply_values<head_dim, fragments>(weights, rescale, shared.values[tile % stages], warp * fragments, acc);
    barrier();  // everybody is done with this stage
    start(tile + stages);
  }
  wait_copies<0>();
  add_threads(state);

  const Parts parts(args);
  SPLICE_UNROLL
  for (int row = 0; row < 2; ++row) {
    const int64_t query = first_row + lane / 4 + 8 * row;
    if (query >= rows.count()) continue;
    const int64_t place = rows.place(query);
    if (warp == 0 && lane % 4 == 0) {
      parts.sum_of(place, span)[0] = state.maximum[row];
      parts.sum_of(place, span)[1] = state.total[row];
    }
    auto* to = reinterpret_cast<Pair*>(parts.accumulator(place, span, head_dim) + warp * fragments * FRAGMENT_COLUMNS) + lane % 4;
    SPLICE_UNROLL
    for (int fragment = 0; fragment < fragments; ++fragment)
      if (warp * fragments + fragment < head_dim / FRAGMENT_COLUMNS)
        to[fragment * FRAGMENT_COLUMNS / 2] = {acc[fragment][2 * row], acc[fragment][2 * row + 1]};
  }
}

// Block (x, y, z): spans x, x + width of the grid, …; KV head and 16 query rows y; sequence z.
template <int head_dim, int stages>
SPLICE_KERNEL __launch_bounds__(THREADS) attend_spans(splice_cuda_attention args, int shift) {
  auto& shared = *reinterpret_cast<Shared<head_dim, stages>*>(shared_memory());
  const int64_t sequence = block_z();
  const QueryRows rows(args, sequence, block_y() % args.kv.kv_heads);
  const int64_t first_row = block_y() / args.kv.kv_heads * FRAGMENT_ROWS;
  if (first_row >= rows.count()) return;
  const int64_t last_row = (first_row + FRAGMENT_ROWS < rows.count() ? first_row + FRAGMENT_ROWS : rows.count()) - 1;
  const int64_t low = Sight(rows, first_row).low, end = Sight(rows, last_row).high;
  for (int64_t span = block_x(); span * SPAN_KEYS < end; span += grid_x())
    if ((span + 1) * SPAN_KEYS > low) attend_span<head_dim>(args, rows, sequence, first_row, last_row, span, shift, low, end, shared);
}

struct SharedShares {
  Shares shares[MAX_BLOCKS_OF_SPANS];
  float maxima[MAX_BLOCKS_OF_SPANS], totals[MAX_BLOCKS_OF_SPANS];
};

// A block joins the parts of one row of heads. What share a span has depends on maxima alone, so shares are computed first, each by
// a thread of its own from the largest maximum before it, which is the same in any order.
template <int head_dim>
constexpr int JOINING = (head_dim + WARP - 1) / WARP * WARP;

template <int head_dim>
SPLICE_KERNEL __launch_bounds__(JOINING<head_dim>) join_spans(splice_cuda_attention args) {
  auto& shared = *reinterpret_cast<SharedShares*>(shared_memory());
  const int64_t row = block_x(), head = row % args.q_heads;
  const Sight sight = sight_of_token(args, row / args.q_heads);
  const int64_t first = sight.low / SPAN_KEYS, count = Parts::spans_of(sight.high) - first;
  const Parts parts(args);
  const int own = thread_index() < head_dim ? thread_index() : head_dim - 1;  // whole warps: the last lanes repeat
  float maximum = NEGATIVE_INFINITY, total = 0.0f, acc = 0.0f;
  for (int64_t done = 0; done < count; done += MAX_BLOCKS_OF_SPANS) {
    const int here = static_cast<int>(count - done < MAX_BLOCKS_OF_SPANS ? count - done : MAX_BLOCKS_OF_SPANS);
    for (int i = thread_index(); i < here; i += block_threads()) {
      shared.maxima[i] = parts.sum_of(row, first + done + i)[0];
      shared.totals[i] = parts.sum_of(row, first + done + i)[1];
    }
    barrier();
    for (int i = thread_index(); i < here; i += block_threads()) {
      float before = maximum;
      for (int j = 0; j < i; ++j) before = shared.maxima[j] > before ? shared.maxima[j] : before;
      shared.shares[i] = joined(before, shared.maxima[i]);
    }
    barrier();
    const float* values = parts.accumulator(row, first + done, head_dim) + own;
    SPLICE_UNROLL_BY_8
    for (int i = 0; i < here; ++i) {
      acc = merged(acc, values[static_cast<int64_t>(i) * head_dim], shared.shares[i]);
      total = merged(total, shared.totals[i], shared.shares[i]);
    }
    maximum = shared.shares[here - 1].maximum;
    barrier();
  }
  const Finish finish(maximum, total, args.sinks ? args.sinks + head : nullptr);
  static_cast<uint16_t*>(args.out)[row * head_dim + own] = to_bf16(finish(acc));
}

template <int head_dim, int stages>
int attend(const splice_cuda_attention& args, void* stream) {
  const int64_t group = args.q_heads / args.kv.kv_heads, tiles = (args.max_query * group + FRAGMENT_ROWS - 1) / FRAGMENT_ROWS;
  const int64_t spans = Parts::spans_of(args.max_context);
  const GridSize grid{spans < MAX_BLOCKS_OF_SPANS ? spans : MAX_BLOCKS_OF_SPANS, tiles * args.kv.kv_heads, args.sequences};
  const int code = launch("decode_attention", attend_spans<head_dim, stages>, grid, THREADS, sizeof(Shared<head_dim, stages>), stream, args,
                          block_shift(args.kv.block_tokens));
  if (code != SPLICE_CUDA_OK) return code;
  return launch("decode_attention", join_spans<head_dim>, {args.rows * args.q_heads}, JOINING<head_dim>, sizeof(SharedShares), stream, args);
}

template <int head_dim>
int attend(const splice_cuda_attention& args, void* stream) {
  if constexpr (sizeof(Shared<head_dim, 2>) > SHARED_OF_SMALL) {
    static_assert(sizeof(Shared<head_dim, 1>) <= SHARED_OF_SMALL);
    DeviceLimits limits;
    if (const int code = read_limits("decode_attention", limits); code != SPLICE_CUDA_OK) return code;
    if (static_cast<int64_t>(sizeof(Shared<head_dim, 2>)) > limits.shared_bytes) return attend<head_dim, 1>(args, stream);
  }
  return attend<head_dim, 2>(args, stream);
}

}  // namespace
}  // namespace splice::cuda

extern "C" int64_t splice_cuda_decode_workspace(int64_t rows, int64_t q_heads, int64_t head_dim, int64_t max_context) {
  return rows * q_heads * splice::cuda::Parts::spans_of(max_context) * (head_dim + 2) * static_cast<int64_t>(sizeof(float));
}

extern "C" int splice_cuda_decode_attention(const splice_cuda_attention* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows == 0) return SPLICE_CUDA_OK;
  const int code = check_attention("decode_attention", *args);
  if (code != SPLICE_CUDA_OK) return code;
  if (!aligned(args->workspace) || !args->workspace)
    return fail(SPLICE_CUDA_INVALID, "decode_attention: a workspace aligned to 16 bytes is needed");
  switch (args->kv.head_dim) {
    case 64: return attend<64>(*args, stream);
    case 80: return attend<80>(*args, stream);
    case 96: return attend<96>(*args, stream);
    case 128: return attend<128>(*args, stream);
    case 256: return attend<256>(*args, stream);
    default:
      return fail(SPLICE_CUDA_UNSUPPORTED, "decode_attention: head_dim %lld, expected 64, 80, 96, 128 or 256",
                  static_cast<long long>(args->kv.head_dim));
  }
}
