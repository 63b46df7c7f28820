// Causal attention over the paged KV cache, one (sequence, KV head, tile of queries) at a time.
//
// Softmax is online (Milakov & Gimelshein 2018; Dao et al. 2022) and anchored at absolute position 0: a query meets the spans
// of 32 positions in ascending order, and each span updates (maximum, 16 partial sums, accumulator) once. A score is one FMA
// chain over head_dim; an output element is one FMA chain over positions, rescaled at span borders. A query's arithmetic
// depends on its own position and nothing else: chunking, neighbours, threads and the cache's block size cannot change it.
//
// Reads 2·32·head_dim cache elements a span, once per 16 queries and for the whole group of query heads that shares them, and
// does 4·head_dim operations per (query, head, position).
//
// Measured on one AVX2 core (Zen 3; FMA chains in registers reach 103.7 GFLOP/s) with 9 heads on 3 KV heads of 64: a prompt of
// 512 does 51 GFLOP/s of useful (causal) work, 0.49 of that; decoding at position 1024 reads 9.8 GB/s of fp32 cache and 4.8 of
// bf16, the same time for half the bytes: it is bound by computation (the keys' transposition is the likely part), not by memory.
#pragma once

#include "int8_rows.h"
#include "kernels.h"
#include "tile.h"

namespace {

using splice::cpu::ATTENTION_QUERY_TILE;
using splice::cpu::AttentionArgs;

constexpr int64_t SPAN = 32;

SPLICE_INLINE int64_t padded(int64_t head_dim) { return (head_dim + LANES - 1) / LANES * LANES; }

// One tile's working set, cut from the thread's scratch.
struct AttentionTile {
  int64_t rows, dim;     // rows = queries × heads of the group; dim = head_dim in whole vectors
  float *queries, *keys, *values, *scores, *maxima, *sums, *acc;
};

SPLICE_INLINE int64_t tile_floats(int64_t rows, int64_t dim) {
  return rows * dim * 2 + 2 * SPAN * dim + rows * SPAN + rows * LANES * 2;
}

SPLICE_INLINE AttentionTile cut_tile(float* scratch, int64_t rows, int64_t dim) {
  AttentionTile t{rows, dim, scratch, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  t.keys = t.queries + rows * dim;
  t.values = t.keys + SPAN * dim;
  t.scores = t.values + SPAN * dim;
  t.sums = t.scores + rows * SPAN;
  t.acc = t.sums + rows * LANES;
  t.maxima = t.acc + rows * dim;
  return t;
}

// Where the keys (plane 0) or values (plane 1) of one head and position lie, in elements.
SPLICE_INLINE int64_t kv_row(const AttentionArgs& args, const int32_t* table, int64_t head, int64_t plane, int64_t position) {
  const splice_cpu_kv& kv = args.kv;
  const int64_t block = table[position / kv.block_tokens];
  const int64_t head_row = ((block * kv.layers + args.layer) * 2 + plane) * kv.kv_heads + head;
  return (head_row * kv.block_tokens + position % kv.block_tokens) * kv.head_dim;
}

SPLICE_INLINE float element(const float* row, int64_t i) { return row[i]; }
SPLICE_INLINE float element(const uint16_t* row, int64_t i) { return from_bf16(row[i]); }
SPLICE_INLINE F16 elements(const float* row) { return load(row); }
SPLICE_INLINE F16 elements(const uint16_t* row) { return load_bf16(row); }

// Keys of `count` positions, transposed to two panels [2][dim][16]: positions in lanes. Lanes past `count` stay what they were.
template <class Element>
SPLICE_INLINE void transpose_keys(const AttentionArgs& args, const int32_t* table, int64_t head, int64_t start,
                                  int64_t count, float* dst, int64_t dim) {
  for (int64_t j = 0; j < count; ++j) {
    const Element* row = static_cast<const Element*>(args.kv.data) + kv_row(args, table, head, 0, start + j);
    float* lane = dst + j / LANES * LANES * dim + j % LANES;
    for (int64_t d = 0; d < args.kv.head_dim; ++d) lane[d * LANES] = element(row, d);
  }
}

// Values of `count` positions as fp32 rows of `dim`; the cache itself where it already is that.
template <class Element>
SPLICE_INLINE const float* gather_values(const AttentionArgs& args, const int32_t* table, int64_t head, int64_t start,
                                         int64_t count, float* dst, int64_t dim) {
  const Element* data = static_cast<const Element*>(args.kv.data);
  const int64_t head_dim = args.kv.head_dim;
  if constexpr (sizeof(Element) == sizeof(float))
    if (head_dim == dim && args.kv.block_tokens % SPAN == 0) return data + kv_row(args, table, head, 1, start);
  for (int64_t j = 0; j < count; ++j) {
    const Element* row = data + kv_row(args, table, head, 1, start + j);
    float* out = dst + j * dim;
    int64_t d = 0;
    for (; d + LANES <= head_dim; d += LANES) store(out + d, elements(row + d));
    for (; d < dim; ++d) out[d] = d < head_dim ? element(row, d) : 0.0f;
  }
  return dst;
}

SPLICE_INLINE float largest(const float* scores, int64_t valid) {
  float best = scores[0];
  for (int64_t j = 1; j < valid; ++j) best = scores[j] > best ? scores[j] : best;
  return best;
}

// Scores of one row become weights; the row's sums and accumulator are brought to the new maximum.
SPLICE_INLINE void soften_row(const AttentionTile& t, int64_t row, int64_t valid) {
  float* scores = t.scores + row * SPAN;
  float* acc = t.acc + row * t.dim;
  const float before = t.maxima[row];
  const float span_maximum = largest(scores, valid);
  const float maximum = span_maximum > before ? span_maximum : before;
  for (int64_t j = valid; j < SPAN; ++j) scores[j] = maximum;  // what lies past the query may be anything, NaN too
  F16 low = exp(sub(load(scores), splat(maximum)));
  F16 high = exp(sub(load(scores + LANES), splat(maximum)));
  store(scores, low);
  store(scores + LANES, high);
  for (int64_t j = valid; j < SPAN; ++j) scores[j] = 0.0f;
  const F16 scale = exp(splat(before - maximum));
  F16 partial = add(load(scores), load(scores + LANES));
  store(t.sums + row * LANES, fma(load(t.sums + row * LANES), scale, partial));
  for (int64_t d = 0; d < t.dim; d += LANES) store(acc + d, mul(load(acc + d), scale));
  t.maxima[row] = maximum;
}

template <class Element>
SPLICE_INLINE void attend_span(const AttentionArgs& args, const AttentionTile& t, const int32_t* table, int64_t head,
                               int64_t group, int64_t start, int64_t count, int64_t first_position) {
  transpose_keys<Element>(args, table, head, start, count, t.keys, t.dim);
  const float* values = gather_values<Element>(args, table, head, start, count, t.values, t.dim);
  const PanelsF32 keys{t.keys, LANES * t.dim, LANES}, columns{values, LANES, t.dim};
  const int64_t panels = t.dim / LANES;

  multiply_rows(t.queries, t.dim, keys, SPAN / LANES, args.kv.head_dim, t.scores, SPAN, LANES, t.rows, false);
  // Queries before the span have nothing here; those inside it see a part of it, each its own; all later ones share a product.
  int64_t row = first_position < start ? (start - first_position) * group : 0;
  for (; row < t.rows; row += group) {
    const int64_t valid = first_position + row / group - start + 1;
    if (valid >= SPAN) break;
    for (int64_t g = 0; g < group; ++g) soften_row(t, row + g, valid);
    multiply_rows(t.scores + row * SPAN, SPAN, columns, panels, valid, t.acc + row * t.dim, t.dim, LANES, group, true);
  }
  if (row >= t.rows) return;
  for (int64_t r = row; r < t.rows; ++r) soften_row(t, r, SPAN);
  multiply_rows(t.scores + row * SPAN, SPAN, columns, panels, SPAN, t.acc + row * t.dim, t.dim, LANES, t.rows - row, true);
}

void attention(const AttentionArgs& args, int64_t sequence, int64_t head, int64_t first, int64_t last, float* scratch) {
  const int64_t group = args.q_heads / args.kv.kv_heads;
  const int64_t head_dim = args.kv.head_dim;
  const AttentionTile t = cut_tile(scratch, (last - first) * group, padded(head_dim));
  const int64_t query_row = args.query_starts[sequence] + first;
  for (int64_t row = 0; row < t.rows; ++row) {
    const float* q = args.q + (query_row + row / group) * args.q_stride + (head * group + row % group) * head_dim;
    for (int64_t d = 0; d < t.dim; ++d) {
      t.queries[row * t.dim + d] = d < head_dim ? q[d] * args.scale : 0.0f;
      t.acc[row * t.dim + d] = 0.0f;
    }
    store(t.sums + row * LANES, zero());
    t.maxima[row] = -__builtin_inff();
  }
  const int64_t first_position = args.starts[sequence] + first;
  const int64_t end = args.starts[sequence] + last;
  const int32_t* table = args.block_tables + sequence * args.table_stride;
  for (int64_t start = 0; start < end; start += SPAN) {
    const int64_t count = end - start < SPAN ? end - start : SPAN;
    if (args.kv.dtype == SPLICE_CPU_F32)
      attend_span<float>(args, t, table, head, group, start, count, first_position);
    else
      attend_span<uint16_t>(args, t, table, head, group, start, count, first_position);
  }

  for (int64_t row = 0; row < t.rows; ++row) {
    const F16 total = splat(sum(load(t.sums + row * LANES)));
    float* value = t.acc + row * t.dim;
    for (int64_t d = 0; d < t.dim; d += LANES) store(value + d, div(load(value + d), total));
    const int64_t place = (query_row + row / group) * args.q_heads + head * group + row % group;
    if (!args.out8) __builtin_memcpy(args.out + place * head_dim, value, sizeof(float) * static_cast<size_t>(head_dim));
  }
  if (!args.out8) return;
  const int64_t width = group * head_dim, blocks = args.q_heads * head_dim / splice::cpu::INT8_DEPTH;
  for (int64_t query = 0; query < last - first; ++query) {
    // Heads of one group are neighbours; where head_dim fills no whole vector, close their ranks.
    float* row = t.acc + query * group * t.dim;
    for (int64_t g = 1; g < group && t.dim != head_dim; ++g)
      for (int64_t d = 0; d < head_dim; ++d) row[g * head_dim + d] = row[g * t.dim + d];
    quantize_row(args.out8 + (query_row + query) * blocks + head * width / splice::cpu::INT8_DEPTH, row, width);
  }
}

size_t attention_scratch(const AttentionArgs& args) {
  const int64_t rows = ATTENTION_QUERY_TILE * (args.q_heads / args.kv.kv_heads);
  return static_cast<size_t>(tile_floats(rows, padded(args.kv.head_dim)));
}

}  // namespace
