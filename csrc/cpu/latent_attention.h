// Causal attention over a paged cache of latents (DeepSeek-V2, arXiv 2405.04434), absorbed: a cache row [latent | rotated key] is the
// key of every head, its latent the value. One (sequence, group of heads, tile of queries) at a time.
//
// The arithmetic is that of attention.h: online softmax over spans of 32 positions anchored at absolute position 0, a score one FMA
// chain over the row, an output element one FMA chain over positions, rescaled at span borders. A query's result depends on its own
// position alone, whether its token was part of a prompt or of an answer, and however the sequence was cut.
//
// Reads 32·(rank + rope) cache elements a span, once for a tile of up to 64 (query, head) pairs, and does 2·(2·rank + rope) operations
// a pair and position.
#pragma once

#include "elementwise.h"
#include "kernels.h"
#include "kv_cache.h"
#include "rope.h"
#include "tile.h"
#include "transpose.h"

namespace {

using splice::cpu::LatentArgs;
using splice::cpu::LatentStoreArgs;
using splice::cpu::LatentTurnArgs;

constexpr int64_t LATENT_SPAN = 32;

SPLICE_INLINE int64_t whole_lanes(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

SPLICE_INLINE uint8_t* latent_plane(const splice_cpu_kv& kv, int64_t layer, int64_t block) {
  return static_cast<uint8_t*>(kv.data) + (block * kv.layers + layer) * splice::cpu::kv_plane_bytes(kv);
}

// One tile's working set, cut from the thread's scratch; rows = queries × heads of the group.
struct LatentTile {
  int64_t rows, dim, rank;  // the widths of cache rows and latents, in whole vectors
  float *queries, *acc, *keys, *values, *scores, *sums, *maxima;
};

SPLICE_INLINE LatentTile cut_latent_tile(float* scratch, int64_t rows, int64_t dim, int64_t rank) {
  LatentTile t{rows, dim, rank, scratch, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  t.acc = t.queries + rows * dim;
  t.keys = t.acc + rows * rank;
  t.values = t.keys + LATENT_SPAN * dim;
  t.scores = t.values + LATENT_SPAN * rank;
  t.sums = t.scores + rows * LATENT_SPAN;
  t.maxima = t.sums + rows * LANES;
  return t;
}

// Where a span's rows are; places past `count` repeat the last one: they may be read and count for nothing.
template <class Element>
SPLICE_INLINE bool find_latents(const LatentArgs& args, const int32_t* table, int64_t start, int64_t count,
                                const Element* (&rows)[LATENT_SPAN]) {
  const splice_cpu_kv& kv = args.kv;
  for (int64_t j = 0; j < LATENT_SPAN; ++j) {
    const int64_t position = start + (j < count ? j : count - 1);
    rows[j] = reinterpret_cast<const Element*>(latent_plane(kv, args.layer, table[position / kv.block_tokens])) +
              position % kv.block_tokens * kv.head_dim;
  }
  return kv.block_tokens % LATENT_SPAN == 0;
}

// Latents of a span as fp32, their rows `step` apart: the cache itself where it already is that in whole vectors.
template <class Element>
SPLICE_INLINE PanelsF32 latent_values(const LatentArgs& args, const LatentTile& t, const Element* const (&rows)[LATENT_SPAN],
                                      int64_t count, bool contiguous) {
  if constexpr (sizeof(Element) == sizeof(float))
    if (contiguous && t.rank == args.rank) return {rows[0], LANES, args.kv.head_dim};
  for (int64_t j = 0; j < count; ++j) {
    float* out = t.values + j * t.rank;
    int64_t d = 0;
    for (; d + LANES <= args.rank; d += LANES) store(out + d, elements(rows[j] + d));
    for (; d < t.rank; ++d) out[d] = d < args.rank ? element(rows[j], d) : 0.0f;
  }
  return {t.values, LANES, t.rank};
}

// Scores of one row become weights, zero from `high` on; its sums and accumulator are brought to the new maximum.
SPLICE_INLINE void soften_latents(const LatentTile& t, int64_t row, int64_t high) {
  float *scores = t.scores + row * LATENT_SPAN, *acc = t.acc + row * t.rank;
  for (int64_t j = high; j < LATENT_SPAN; ++j) scores[j] = -__builtin_inff();  // what is not seen may be anything, NaN too
  const float before = t.maxima[row], own = largest(max(load(scores), load(scores + LANES)));
  const float maximum = own > before ? own : before;
  store(scores, exp(sub(load(scores), splat(maximum))));
  store(scores + LANES, exp(sub(load(scores + LANES), splat(maximum))));
  for (int64_t j = high; j < LATENT_SPAN; ++j) scores[j] = 0.0f;
  const F16 scale = exp(splat(before - maximum));
  store(t.sums + row * LANES, fma(load(t.sums + row * LANES), scale, add(load(scores), load(scores + LANES))));
  for (int64_t d = 0; d < t.rank; d += LANES) store(acc + d, mul(load(acc + d), scale));
  t.maxima[row] = maximum;
}

template <class Element>
SPLICE_INLINE void attend_latents(const LatentArgs& args, const LatentTile& t, int64_t sequence, int64_t heads,
                                  int64_t first_position, int64_t end) {
  const int32_t* table = args.block_tables + sequence * args.table_stride;
  const int64_t queries = t.rows / heads;
  for (int64_t start = 0; start < end; start += LATENT_SPAN) {
    const int64_t count = end - start < LATENT_SPAN ? end - start : LATENT_SPAN;
    const Element* rows[LATENT_SPAN];
    const bool contiguous = find_latents(args, table, start, count, rows);
    transpose_keys(rows, args.kv.head_dim, t.keys, t.dim);
    const PanelsF32 values = latent_values(args, t, rows, count, contiguous);
    const int64_t first = first_position < start ? start - first_position : 0;  // queries before the span see nothing of it
    multiply_rows(t.queries + first * heads * t.dim, t.dim, {t.keys, LANES * t.dim, LANES}, LATENT_SPAN / LANES,
                  args.kv.head_dim, t.scores + first * heads * LATENT_SPAN, LATENT_SPAN, LANES, (queries - first) * heads, false);
    // Queries that see a part of the span go one by one, all others share a product.
    for (int64_t query = first, run; query < queries; query += run) {
      const int64_t seen = first_position + query - start + 1, high = seen < LATENT_SPAN ? seen : LATENT_SPAN;
      run = high == LATENT_SPAN ? queries - query : 1;
      for (int64_t row = query * heads; row < (query + run) * heads; ++row) soften_latents(t, row, high);
      multiply_rows(t.scores + query * heads * LATENT_SPAN, LATENT_SPAN, values, t.rank / LANES, high,
                    t.acc + query * heads * t.rank, t.rank, LANES, run * heads, true);
    }
  }
}

void latent_attention(const LatentArgs& args, int64_t sequence, int64_t first_head, int64_t last_head, int64_t first, int64_t last,
                      float* scratch) {
  const int64_t heads = last_head - first_head, width = args.kv.head_dim;
  const LatentTile t = cut_latent_tile(scratch, (last - first) * heads, whole_lanes(width), whole_lanes(args.rank));
  const int64_t query_row = args.query_starts[sequence] + first;
  for (int64_t row = 0; row < t.rows; ++row) {
    const float* q = args.q + ((query_row + row / heads) * args.q_heads + first_head + row % heads) * width;
    for (int64_t d = 0; d < t.dim; ++d) t.queries[row * t.dim + d] = d < width ? q[d] * args.scale : 0.0f;
    for (int64_t d = 0; d < t.rank; d += LANES) store(t.acc + row * t.rank + d, zero());
    store(t.sums + row * LANES, zero());
    t.maxima[row] = -__builtin_inff();
  }
  const int64_t position = args.starts[sequence] + first, end = args.starts[sequence] + last;
  if (args.kv.dtype == SPLICE_CPU_F32)
    attend_latents<float>(args, t, sequence, heads, position, end);
  else
    attend_latents<uint16_t>(args, t, sequence, heads, position, end);
  for (int64_t row = 0; row < t.rows; ++row) {
    float *acc = t.acc + row * t.rank, *out = args.out + ((query_row + row / heads) * args.q_heads + first_head + row % heads) * args.rank;
    const F16 total = splat(sum(load(t.sums + row * LANES)));
    for (int64_t d = 0; d < t.rank; d += LANES) store(acc + d, div(load(acc + d), total));
    __builtin_memcpy(out, acc, sizeof(float) * static_cast<size_t>(args.rank));
  }
}

size_t latent_scratch(const LatentArgs& args) {
  const int64_t heads = splice::cpu::latent_heads(args), rows = splice::cpu::latent_queries(args) * heads;
  const int64_t dim = whole_lanes(args.kv.head_dim), rank = whole_lanes(args.rank);
  return static_cast<size_t>((rows + LATENT_SPAN) * (dim + rank) + rows * (LATENT_SPAN + 2 * LANES));
}

// Norms of latents and turned keys into the cache.
void store_latents(const LatentStoreArgs& args, int64_t first, int64_t last) {
  const splice_cpu_kv& kv = args.kv;
  const int64_t turning = kv.head_dim - args.rank;
  float row[SPLICE_CPU_MAX_HEAD_DIM];
  for (int64_t token = first; token < last; ++token) {
    if (args.slots[token] < 0) continue;
    const float* down = args.down + token * kv.head_dim;
    norm_row({row, nullptr, down, args.rank, nullptr, args.norm, SPLICE_CPU_F32, args.eps, args.rank}, 0);
    const float* cosines = args.cos_sin + args.positions[token] * turning;
    rotate(row + args.rank, down + args.rank, cosines, cosines + turning / 2, turning / 2);
    store_kv(kv, latent_plane(kv, args.layer, args.slots[token] / kv.block_tokens), args.slots[token] % kv.block_tokens, row);
  }
}

// The last part of every head's query, turned, to its place behind what the absorbed part becomes.
void turn_queries(const LatentTurnArgs& args, int64_t first, int64_t last) {
  for (int64_t token = first; token < last; ++token) {
    const float* cosines = args.cos_sin + args.positions[token] * args.turning;
    for (int64_t head = token * args.q_heads; head < (token + 1) * args.q_heads; ++head)
      rotate(args.out + head * (args.rank + args.turning) + args.rank, args.q + head * (args.still + args.turning) + args.still,
             cosines, cosines + args.turning / 2, args.turning / 2);
  }
}

}  // namespace
