// What decode and prefill attention share, so that a query's bits do not depend on which of them computed it.
//
// Positions are cut, from 0 on, into spans of 256 keys, spans into tiles of 64. Within a span softmax is online, tile by tile from a
// fresh start; spans are joined in ascending order (online_softmax.h). A row's arithmetic in a tile: 64 scores, each one chain over
// head_dim in steps of 16; the largest; weights, each 2 to a product fused with the difference from it; a sum over the columns that a
// thread of the fragment holds, then over the four threads of the row; and the weighted values, one chain over the tile's keys in steps
// of 16. A tile of which a row sees nothing leaves its state as it is, to the bit, so that what other rows of a fragment see does not
// matter.
#pragma once

#include "launch.h"
#include "online_softmax.h"
#include "paging.h"
#include "rows.h"

namespace splice::cuda {

constexpr int SPAN_KEYS = 256, TILE_KEYS = 64, SPAN_TILES = SPAN_KEYS / TILE_KEYS, FRAGMENT_ROWS = 16, FRAGMENT_COLUMNS = 8;
constexpr int TILE_COLUMNS = TILE_KEYS / FRAGMENT_COLUMNS;  // fragments of scores side by side
constexpr int TILE_STEPS = TILE_KEYS / 16;                   // of products with values
constexpr int MAX_SPAN_BLOCKS = SPAN_KEYS / 16;
constexpr float LOG2_E = 1.4426950408889634f;

// Chunks from row to row of head_dim elements in shared memory: whole groups of eight.
template <int head_dim>
constexpr int ROW_CHUNKS = (head_dim / CHUNK_ELEMENTS + 7) / 8 * 8;
template <int head_dim>
constexpr bool PADDED = ROW_CHUNKS<head_dim> * CHUNK_ELEMENTS != head_dim;

// There chunk c of row r stands in place of chunk c xor (r mod 8), so that the eight rows a matrix load takes lie in eight groups of
// banks.
template <int head_dim>
SPLICE_BOTH int chunk_place(int row, int chunk) {
  return row * ROW_CHUNKS<head_dim> + (chunk ^ (row & 7));
}

// A row there, and of its chunks the even (`odd` 0) or the odd ones. All of a place that is not a constant is one exclusive or of eight
// values: were the compiler left to find that, it would keep an address for every step.
template <int head_dim>
struct SharedRow {
  const Chunk* start;
  int turn;

  SPLICE_DEVICE SharedRow(const Chunk* rows, int row, int odd) : start(rows + row * ROW_CHUNKS<head_dim>), turn(row % 8 ^ odd) {}
  // The chunk `even`, or the one after it, of the row `down` rows below: a multiple of 8.
  SPLICE_DEVICE const Chunk* at(int even, int down = 0) const {
    return start + down * ROW_CHUNKS<head_dim> + even / 8 * 8 + (even % 8 ^ turn);
  }
};

// Of values: this lane's row for a transposed load, of chunks from `first` on. A multiple of 8, or of as many as are loaded.
template <int head_dim>
SPLICE_DEVICE SharedRow<head_dim> value_row(const Chunk* values, int first) {
  const int lane = thread_index() % WARP, matrix = lane / 8;
  return {values + first / 8 * 8, matrix % 2 * 8 + lane % 8, matrix / 2 ^ first % 8};
}

// Query row r of a sequence and KV head is token r / group, head r mod group of the KV head's own.
//
// Rows are counted in 32 bits, which check_attention sees to: a quotient of 64 takes five times as many instructions, and every block
// has some.
struct QueryRows {
  const splice_cuda_attention& args;
  int first_row, start;  // of the sequence: its first row of q, and that row's position
  uint32_t count, group, kv_head;

  SPLICE_DEVICE QueryRows(const splice_cuda_attention& a, int64_t sequence, uint32_t head)
      : args(a), first_row(a.query_starts[sequence]), start(a.starts[sequence]),
        group(static_cast<uint32_t>(a.q_heads) / static_cast<uint32_t>(a.kv.kv_heads)), kv_head(head) {
    count = static_cast<uint32_t>(a.query_starts[sequence + 1] - first_row) * group;
  }

  SPLICE_DEVICE int position(uint32_t row) const { return start + static_cast<int>(row / group); }
  // Of q's and out's rows of heads.
  SPLICE_DEVICE int64_t place(uint32_t row) const {
    return (first_row + static_cast<int64_t>(row / group)) * args.q_heads + kv_head * group + row % group;
  }
};

// Which positions a row sees: [low, high).
struct Sight {
  int low, high;

  // Of a query at a position.
  SPLICE_DEVICE Sight(const splice_cuda_attention& args, int position) : low(0), high(position + 1) {
    if (args.window > 0 && high > args.window) low = high - static_cast<int>(args.window);
  }
  // Of a row; of rows past the last, what the last sees: their queries are zeros, and nobody keeps what comes of them.
  SPLICE_DEVICE Sight(const QueryRows& rows, uint32_t row) : Sight(rows.args, rows.position(row < rows.count ? row : rows.count - 1)) {}
  SPLICE_DEVICE bool is_whole(int first_key) const { return low <= first_key && high >= first_key + TILE_KEYS; }
};

// The sequence that a row of q belongs to: the last that begins at or before it.
SPLICE_DEVICE int64_t sequence_of(const int32_t* query_starts, int64_t sequences, int64_t token) {
  // Where every sequence has one row: each step of a search would wait for the one before.
  if (token < sequences && query_starts[token] <= token && token < query_starts[token + 1]) return token;
  int64_t sequence = 0, beyond = sequences;
  while (beyond - sequence > 1) {
    const int64_t middle = (sequence + beyond) / 2;
    if (query_starts[middle] <= token)
      sequence = middle;
    else
      beyond = middle;
  }
  return sequence;
}

SPLICE_DEVICE Sight sight_of_token(const splice_cuda_attention& args, int64_t token) {
  const int64_t sequence = sequence_of(args.query_starts, args.sequences, token);
  return Sight(args, args.starts[sequence] + static_cast<int>(token) - args.query_starts[sequence]);
}

// Starts copies of query rows first…first + count into shared memory; rows past the last are zeros.
template <int head_dim>
SPLICE_DEVICE void start_queries(const QueryRows& rows, uint32_t first, int count, Chunk* to) {
  constexpr int chunks = head_dim / CHUNK_ELEMENTS;
  for (int i = thread_index(); i < count * chunks; i += block_threads()) {
    const int row = i / chunks, chunk = i % chunks;
    const bool valid = first + static_cast<uint32_t>(row) < rows.count;
    const auto* from = static_cast<const Chunk*>(rows.args.q) + (valid ? rows.place(first + static_cast<uint32_t>(row)) * chunks + chunk : 0);
    start_copy(to + chunk_place<head_dim>(row, chunk), from, valid);
  }
}

// Where the keys of a span's blocks lie, in shared memory, so that a copy of 16 bytes costs a look and a sum: a tile is 2048 of them, and
// the products of block, layer, plane and head for each would take longer than memory does. Of blocks past the last one seen: any that
// may be read.
struct SpanBlocks {
  const Chunk* keys[MAX_SPAN_BLOCKS];
};

// Reads the blocks of a span that hold positions below `end`; the caller's barrier makes them seen.
SPLICE_DEVICE void read_blocks(const splice_cuda_attention& args, int64_t sequence, int kv_head, int span, int shift, int end, SpanBlocks& to) {
  const int i = thread_index(), position = span * SPAN_KEYS + (i << shift);
  if (i >= SPAN_KEYS >> shift) return;
  const void* keys = args.kv.data;
  if (position < end)
    keys = kv_plane(args.kv, args.layer, args.block_tables[sequence * args.table_stride + (position >> shift)], 0, kv_head);
  to.keys[i] = static_cast<const Chunk*>(keys);
}

// Starts copies of a tile of keys and of its values. `left`: positions of the span that are seen; those from there on are zeros: what the
// cache holds there is never read.
template <int head_dim, int threads>
SPLICE_DEVICE void start_tile(const splice_cuda_attention& args, const SpanBlocks& blocks, int shift, int tile, int left, Chunk* keys,
                              Chunk* values) {
  constexpr int chunks = head_dim / CHUNK_ELEMENTS, copies = TILE_KEYS * chunks, rounds = (copies + threads - 1) / threads;
  const int64_t plane = args.kv.kv_heads * args.kv.block_tokens * chunks;  // from keys to values
  SPLICE_UNROLL
  for (int i = 0; i < rounds; ++i) {
    const int at = thread_index() + i * threads;
    if (copies % threads && at >= copies) break;
    // Where a round is of whole rows a thread keeps to one chunk of them, and all of its places lie a constant apart.
    const int row = threads % chunks ? at / chunks : thread_index() / chunks + i * (threads / chunks);
    const int chunk = threads % chunks ? at % chunks : thread_index() % chunks;
    const int key = tile * TILE_KEYS + row;
    const Chunk* from = blocks.keys[key >> shift] + ((key & ((1 << shift) - 1)) * chunks + chunk);
    start_copy(keys + chunk_place<head_dim>(row, chunk), from, key < left);
    start_copy(values + chunk_place<head_dim>(row, chunk), from + plane, key < left);
  }
}

// scores[f] += queries · keys of fragments first_column…first_column + columns, over all of head_dim in ascending order. `queries` has
// FRAGMENT_ROWS rows.
template <int head_dim, int columns>
SPLICE_DEVICE void multiply_keys(const Chunk* queries, const Chunk* keys, int first_column, float (&scores)[columns][4]) {
  static_assert(columns % 2 == 0);
  const int lane = thread_index() % WARP, matrix = lane / 8, row = lane % 8;
  const SharedRow<head_dim> query(queries, matrix % 2 * 8 + row, matrix / 2);
  const SharedRow<head_dim> key(keys, (first_column + matrix / 2) * FRAGMENT_COLUMNS + row, matrix % 2);
  SPLICE_UNROLL
  for (int step = 0; step < head_dim / 16; ++step) {
    uint32_t q[4];
    load_matrices(q, query.at(2 * step));
    SPLICE_UNROLL
    for (int column = 0; column < columns; column += 2) {
      uint32_t k[4];
      load_matrices(k, key.at(2 * step, column * FRAGMENT_COLUMNS));
      multiply_fragments(scores[column], q, k[0], k[1]);
      multiply_fragments(scores[column + 1], q, k[2], k[3]);
    }
  }
}

// Two neighbours in a row of float32.
struct alignas(8) Pair {
  float first, second;
};

// Scores that warps exchange, in shared memory: a thread's two in fragment `column`, of row lane / 4 or of the one 8 below.
constexpr int SCORE_STRIDE = TILE_KEYS + 8;  // floats: rows of a fragment begin in other banks

SPLICE_DEVICE Pair& score_pair(float* scores, int row, int column) {
  const int lane = thread_index() % WARP;
  return reinterpret_cast<Pair*>(scores + (lane / 4 + 8 * row) * SCORE_STRIDE + column * FRAGMENT_COLUMNS)[lane % 4];
}

template <int columns>
SPLICE_DEVICE void write_scores(float* to, int first_column, const float (&scores)[columns][4]) {
  SPLICE_UNROLL
  for (int i = 0; i < 2 * columns; ++i) {
    const int column = i / 2, row = i % 2;
    score_pair(to, row, first_column + column) = {scores[column][2 * row], scores[column][2 * row + 1]};
  }
}

SPLICE_DEVICE void read_scores(float* from, float (&scores)[TILE_COLUMNS][4]) {
  SPLICE_UNROLL
  for (int i = 0; i < 2 * TILE_COLUMNS; ++i) {
    const Pair pair = score_pair(from, i % 2, i / 2);
    scores[i / 2][i % 2 * 2] = pair.first;
    scores[i / 2][i % 2 * 2 + 1] = pair.second;
  }
}

// The state of the two rows of a fragment that a thread has a part of: lane / 4 and lane / 4 + 8.
struct RowState {
  float maximum[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
  float total[2] = {0.0f, 0.0f};  // of this thread's columns; `add_threads` makes it the row's
};

SPLICE_DEVICE float quad_maximum(float value) {
  value = larger_number(value, from_lane_xor(value, 1));
  return larger_number(value, from_lane_xor(value, 2));
}

// How a product becomes a score in units of log2 e: outer · product or, capped, outer · tanh(inner · product). `outer` is positive, so
// that the largest product has the largest score, and a weight is one fused operation and a power of two.
struct Scoring {
  bool capped;
  float inner, outer;

  SPLICE_DEVICE explicit Scoring(const splice_cuda_attention& args)
      : capped(args.softcap != 0.0f), inner(capped ? quotient(args.scale, args.softcap) : 1.0f),
        outer(product(capped ? args.softcap : args.scale, LOG2_E)) {}
};

SPLICE_DEVICE void hide_unseen(int first_key, const Sight (&sight)[2], float (&scores)[TILE_COLUMNS][4]) {
  int low[2], high[2];  // of this thread's keys, the first of which is number 0
  SPLICE_UNROLL
  for (int row = 0; row < 2; ++row) {
    low[row] = sight[row].low - first_key - 2 * (thread_index() % 4);
    high[row] = sight[row].high - first_key - 2 * (thread_index() % 4);
  }
  SPLICE_UNROLL
  for (int i = 0; i < 4 * TILE_COLUMNS; ++i) {
    const int key = i / 4 * FRAGMENT_COLUMNS + i % 2, row = i % 4 / 2;
    float& score = scores[i / 4][i % 4];
    score = key >= low[row] && key < high[row] ? score : NEGATIVE_INFINITY;
  }
}

// Raw products become weights. `rescale[r]` is what the accumulators of row r are to be multiplied with.
SPLICE_DEVICE void soften(const Scoring& scoring, int first_key, const Sight (&sight)[2], float (&scores)[TILE_COLUMNS][4],
                          RowState& state, float (&rescale)[2]) {
  if (scoring.capped) {
    SPLICE_UNROLL
    for (int i = 0; i < 4 * TILE_COLUMNS; ++i) scores[i / 4][i % 4] = hyperbolic_tangent(product(scores[i / 4][i % 4], scoring.inner));
  }
  if (!sight[0].is_whole(first_key) || !sight[1].is_whole(first_key)) hide_unseen(first_key, sight, scores);
  float most[4] = {scores[0][0], scores[0][1], scores[0][2], scores[0][3]}, level[2];  // two chains a row
  SPLICE_UNROLL
  for (int i = 4; i < 4 * TILE_COLUMNS; ++i) most[i % 4] = larger_number(most[i % 4], scores[i / 4][i % 4]);
  SPLICE_UNROLL
  for (int row = 0; row < 2; ++row) {
    const Shares shares = joined(state.maximum[row], product(quad_maximum(larger_number(most[2 * row], most[2 * row + 1])), scoring.outer));
    state.maximum[row] = shares.maximum;
    rescale[row] = shares.own;
    level[row] = shares.maximum == NEGATIVE_INFINITY ? 0.0f : shares.maximum;
    state.total[row] = product(state.total[row], shares.own);
  }
  SPLICE_UNROLL
  for (int i = 0; i < 2 * TILE_COLUMNS; ++i) {
    const int row = i % 2;
    float& first = scores[i / 2][2 * row];
    float& second = scores[i / 2][2 * row + 1];
    first = power_of_two(fused(first, scoring.outer, -level[row]));
    second = power_of_two(fused(second, scoring.outer, -level[row]));
    state.total[row] = sum(state.total[row], sum(first, second));
  }
}

// Weights, rounded: the left operands of a tile's steps of 16 keys.
SPLICE_DEVICE void pack_weights(const float (&weights)[TILE_COLUMNS][4], uint32_t (&packed)[TILE_STEPS][4]) {
  SPLICE_UNROLL
  for (int i = 0; i < 4 * TILE_STEPS; ++i) {
    const float(&fragment)[4] = weights[i / 4 * 2 + i % 4 / 2];
    packed[i / 4][i % 4] = to_bf16_pair(fragment[i % 2 * 2], fragment[i % 2 * 2 + 1]);
  }
}

// After a span's last tile: the sums of rows from those of their four threads.
SPLICE_DEVICE void add_threads(RowState& state) {
  SPLICE_UNROLL
  for (int row = 0; row < 2; ++row) {
    state.total[row] = sum(state.total[row], from_lane_xor(state.total[row], 1));
    state.total[row] = sum(state.total[row], from_lane_xor(state.total[row], 2));
  }
}

// acc = acc·rescale + weights · values, of `fragments` fragments of dimensions from first_fragment on; those past head_dim are left.
template <int head_dim, int fragments>
SPLICE_DEVICE void multiply_values(const uint32_t (&weights)[TILE_STEPS][4], const float (&rescale)[2], const Chunk* values,
                                   int first_fragment, float (&acc)[fragments][4]) {
  static_assert(fragments % 2 == 0);
  const SharedRow<head_dim> row = value_row<head_dim>(values, first_fragment);
  if (lanes_where(rescale[0] != 1.0f || rescale[1] != 1.0f)) {  // a product with 1 changes no bit: maxima settle soon
    SPLICE_UNROLL
    for (int i = 0; i < 4 * fragments; ++i) acc[i / 4][i % 4] = product(acc[i / 4][i % 4], rescale[i % 4 / 2]);
  }
  SPLICE_UNROLL
  for (int step = 0; step < TILE_STEPS; ++step) {
    SPLICE_UNROLL
    for (int fragment = 0; fragment < fragments; fragment += 2) {
      if (PADDED<head_dim> && first_fragment + fragment >= head_dim / FRAGMENT_COLUMNS) continue;
      uint32_t v[4];
      load_matrices_transposed(v, row.at(fragment, step * 16));
      multiply_fragments(acc[fragment], weights[step], v[0], v[1]);
      multiply_fragments(acc[fragment + 1], weights[step], v[2], v[3]);
    }
  }
}

// What is left to do to a row once all its spans are joined: a sink takes its share, and the sum divides, once for all dimensions.
struct Finish {
  float factor;

  SPLICE_DEVICE Finish(float maximum, float total, const float* sink) : factor(quotient(1.0f, total)) {
    if (!sink) return;
    const Shares shares = joined(maximum, product(*sink, LOG2_E));
    factor = quotient(shares.own, fused(total, shares.own, shares.other));
  }
  SPLICE_DEVICE float operator()(float acc) const { return product(acc, factor); }
};

// Whether arguments are such as all kernels take.
inline int check_attention(const char* name, const splice_cuda_attention& args) {
  const splice_cuda_kv& kv = args.kv;
  if (kv.kv_heads <= 0 || args.q_heads % kv.kv_heads || args.q_heads <= 0)
    return fail(SPLICE_CUDA_INVALID, "%s: %lld query heads on %lld KV heads, expected a multiple", name, static_cast<long long>(args.q_heads),
                static_cast<long long>(kv.kv_heads));
  if (block_shift(kv.block_tokens) < 0)
    return fail(SPLICE_CUDA_UNSUPPORTED, "%s: blocks of %lld tokens, expected 16, 32, 64, 128 or 256", name,
                static_cast<long long>(kv.block_tokens));
  if (!(args.scale > 0.0f) || !(args.softcap >= 0.0f))
    return fail(SPLICE_CUDA_INVALID, "%s: scale %g and softcap %g, expected a positive scale and a cap that is positive or 0", name,
                static_cast<double>(args.scale), static_cast<double>(args.softcap));
  if (!aligned(kv.data) || !aligned(args.q) || !aligned(args.out))
    return fail(SPLICE_CUDA_INVALID, "%s: q, out and the cache must be aligned to 16 bytes", name);
  if (args.max_context <= 0 || args.max_query <= 0 || args.max_context > args.table_stride * kv.block_tokens)
    return fail(SPLICE_CUDA_INVALID, "%s: a context of up to %lld in block tables for %lld tokens", name,
                static_cast<long long>(args.max_context), static_cast<long long>(args.table_stride * kv.block_tokens));
  if (args.max_context >= int64_t{1} << 30 || args.max_query * args.q_heads >= int64_t{1} << 30)
    return fail(SPLICE_CUDA_INVALID, "%s: a context of up to %lld and %lld rows of %lld heads, expected fewer than 2^30 of either", name,
                static_cast<long long>(args.max_context), static_cast<long long>(args.max_query), static_cast<long long>(args.q_heads));
  return SPLICE_CUDA_OK;
}

}  // namespace splice::cuda
