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
//
// Counted in the machine code for sm_90, not measured: at head_dim 128 a tile of 32 KiB is 430 instructions a warp, 430 issue slots of a
// multiprocessor's some 1750 in which an H200's memory brings it one. Three blocks live there, each with one to two tiles on their way:
// 96 to 192 KiB, where 4.3 TB/s with a way of 1 µs want 33 KiB.
#include "attention_tile.h"
#include "launch.h"

namespace splice::cuda {
namespace {

constexpr int WARPS = 4, THREADS = WARPS * WARP, SHARES_KEPT = 256;
// Blocks a multiprocessor is given at least, where there are as many spans. It has three at a time; of more than that the last ones even
// out. Beyond, a block walks spans: one that finds its own beyond a sequence's end has still waited for where that lies, and a captured
// graph is launched for the longest context it may meet.
constexpr int BLOCKS_EACH = 32;

template <int head_dim, int stages>
struct Shared {
  static constexpr int row_chunks = ROW_CHUNKS<head_dim>, tile_chunks = TILE_KEYS * row_chunks;
  Chunk queries[FRAGMENT_ROWS * row_chunks];
  Chunk keys[stages][tile_chunks], values[stages][tile_chunks];
  float scores[FRAGMENT_ROWS * SCORE_STRIDE];
  SpanBlocks blocks;
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
SPLICE_DEVICE void attend_span(const splice_cuda_attention& args, const QueryRows& rows, int64_t sequence, uint32_t first_row, int span,
                               int shift, const Sight& first_sight, const Sight& last_sight, Shared<head_dim, stages>& shared) {
  constexpr int fragments = OWN_FRAGMENTS<head_dim>;
  const int lane = thread_index() % WARP, warp = thread_index() / WARP;
  const Sight sight[2] = {{rows, first_row + lane / 4}, {rows, first_row + lane / 4 + 8}};
  const Scoring scoring(args);
  const int first = span * SPAN_KEYS, left = last_sight.high - first;
  const int tiles = left < SPAN_KEYS ? (left + TILE_KEYS - 1) / TILE_KEYS : SPAN_TILES;
  const int begin = first_sight.low > first ? (first_sight.low - first) / TILE_KEYS : 0;

  barrier();  // the span before is done with shared memory
  read_blocks(args, sequence, rows.kv_head, span, shift, last_sight.high, shared.blocks);
  barrier();
  const auto start = [&](int tile) {
    if (tile < tiles)
      start_tile<head_dim, THREADS>(args, shared.blocks, shift, tile, left, shared.keys[tile % stages], shared.values[tile % stages]);
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
    const int first_key = first + tile * TILE_KEYS;
    soften(scoring, first_key, sight, scores, state, rescale);
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
    const uint32_t query = first_row + lane / 4 + 8 * row;
    if (query >= rows.count) continue;
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
  const auto heads = static_cast<uint32_t>(args.kv.kv_heads), place = static_cast<uint32_t>(block_y());
  const QueryRows rows(args, sequence, place % heads);
  const uint32_t first_row = place / heads * FRAGMENT_ROWS;
  if (first_row >= rows.count) return;
  const Sight first(rows, first_row), last(rows, first_row + FRAGMENT_ROWS - 1);
  for (int span = static_cast<int>(block_x()); span * SPAN_KEYS < last.high; span += static_cast<int>(grid_x()))
    if ((span + 1) * SPAN_KEYS > first.low) attend_span<head_dim>(args, rows, sequence, first_row, span, shift, first, last, shared);
}

struct SharedShares {
  Shares shares[SHARES_KEPT];
  float maxima[SHARES_KEPT], totals[SHARES_KEPT];
};

// Joins one element of up to `batch` parts to what was joined before them. They are asked for before the first is used: one after the
// other each would cost a way to the second-level cache.
template <int batch>
SPLICE_DEVICE void join_parts(const float* parts, int64_t stride, int count, const Shares* shares, const float* totals, float& acc, float& total) {
  float part[batch];
  SPLICE_UNROLL
  for (int i = 0; i < batch; ++i) part[i] = i < count ? parts[i * stride] : 0.0f;
  SPLICE_UNROLL
  for (int i = 0; i < batch; ++i) {
    if (i >= count) break;
    acc = merged(acc, part[i], shares[i]);
    total = merged(total, totals[i], shares[i]);
  }
}

// A block joins the parts of one row of heads. What share a span has depends on maxima alone, so shares are computed first, each by
// a thread of its own from the largest maximum before it, which is the same in any order.
template <int head_dim>
constexpr int JOINING = (head_dim + WARP - 1) / WARP * WARP;

template <int head_dim>
SPLICE_KERNEL __launch_bounds__(JOINING<head_dim>) join_spans(splice_cuda_attention args) {
  constexpr int FEW = 8, MANY = 32;
  auto& shared = *reinterpret_cast<SharedShares*>(shared_memory());
  const auto row = static_cast<uint32_t>(block_x()), heads = static_cast<uint32_t>(args.q_heads), head = row % heads;
  const Sight sight = sight_of_token(args, row / heads);
  const int first = sight.low / SPAN_KEYS, count = (sight.high + SPAN_KEYS - 1) / SPAN_KEYS - first;
  const Parts parts(args);
  const int own = thread_index() < head_dim ? thread_index() : head_dim - 1;  // whole warps: the last lanes repeat
  float maximum = NEGATIVE_INFINITY, total = 0.0f, acc = 0.0f;
  for (int done = 0; done < count; done += SHARES_KEPT) {
    const int here = count - done < SHARES_KEPT ? count - done : SHARES_KEPT;
    for (int i = thread_index(); i < here; i += block_threads()) {
      shared.maxima[i] = parts.sum_of(row, first + done + i)[0];
      shared.totals[i] = parts.sum_of(row, first + done + i)[1];
    }
    barrier();
    for (int i = thread_index(); i < here; i += block_threads()) {
      float before = maximum;
      SPLICE_UNROLL_BY_8
      for (int j = 0; j < i; ++j) before = larger_number(before, shared.maxima[j]);
      shared.shares[i] = joined(before, shared.maxima[i]);
    }
    barrier();
    const float* values = parts.accumulator(row, first + done, head_dim) + own;
    for (int i = 0; i < here;) {
      const bool few = here - i <= FEW;
      if (few)
        join_parts<FEW>(values + i * int64_t{head_dim}, head_dim, here - i, shared.shares + i, shared.totals + i, acc, total);
      else
        join_parts<MANY>(values + i * int64_t{head_dim}, head_dim, here - i, shared.shares + i, shared.totals + i, acc, total);
      i += few ? FEW : MANY;
    }
    maximum = shared.shares[here - 1].maximum;
    barrier();
  }
  const Finish finish(maximum, total, args.sinks ? args.sinks + head : nullptr);
  static_cast<uint16_t*>(args.out)[row * int64_t{head_dim} + own] = to_bf16(finish(acc));
}

template <int head_dim, int stages>
int attend(const splice_cuda_attention& args, const DeviceLimits& limits, void* stream) {
  const int64_t group = args.q_heads / args.kv.kv_heads, tiles = (args.max_query * group + FRAGMENT_ROWS - 1) / FRAGMENT_ROWS;
  const int64_t abreast = tiles * args.kv.kv_heads * args.sequences, spans = Parts::spans_of(args.max_context);
  const int64_t wanted = (limits.multiprocessors * BLOCKS_EACH + abreast - 1) / abreast;
  const GridSize grid{spans < wanted ? spans : wanted, tiles * args.kv.kv_heads, args.sequences};
  const int code = launch("decode_attention", attend_spans<head_dim, stages>, grid, THREADS, sizeof(Shared<head_dim, stages>), stream, args,
                          block_shift(args.kv.block_tokens));
  if (code != SPLICE_CUDA_OK) return code;
  return launch("decode_attention", join_spans<head_dim>, {args.rows * args.q_heads}, JOINING<head_dim>, sizeof(SharedShares), stream, args);
}

template <int head_dim>
int attend(const splice_cuda_attention& args, void* stream) {
  DeviceLimits limits;
  if (const int code = read_limits("decode_attention", limits); code != SPLICE_CUDA_OK) return code;
  if constexpr (sizeof(Shared<head_dim, 2>) > SHARED_OF_SMALL) {
    static_assert(sizeof(Shared<head_dim, 1>) <= SHARED_OF_SMALL);
    if (static_cast<int64_t>(sizeof(Shared<head_dim, 2>)) > limits.shared_bytes) return attend<head_dim, 1>(args, limits, stream);
  }
  return attend<head_dim, 2>(args, limits, stream);
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
