// Causal attention over the paged KV cache, one (sequence, KV head, tile of queries) at a time.
//
// Softmax is online (Milakov & Gimelshein 2018; Dao et al. 2022) and anchored at absolute position 0: a query meets the spans
// of 32 positions in ascending order, and each span that it sees any of updates (maximum, 16 partial sums, accumulator) once. A
// score is one FMA chain over head_dim; an output element is one FMA chain over positions, rescaled at span borders. A query's
// arithmetic depends on its own position and nothing else: chunking, neighbours, threads and the cache's block size cannot
// change it. With a window, spans and positions before it take no part at all. A cap turns a score into cap·tanh(score / cap).
// A sink is one more score, of no position and no value, that joins at the end.
//
// A cache in int8 or fp8 has one fp32 scale a token and head: keys are multiplied as the numbers they are in fp32 and the score by its
// scale, and a value's scale goes into the weight that meets it.
//
// Reads 2·32·head_dim cache elements a span, once per 16 queries and for the whole group of query heads that shares them, and
// does 4·head_dim operations per (query, head, position).
//
// Measured on one AVX2 core (Zen 3; FMA chains in registers reach 103.7 GFLOP/s) with 9 heads on 3 KV heads of 64, the cache in
// the processor's: 16 queries at position 511 do 66 GFLOP/s, one query 33 (0.74 microseconds a span and KV head, half of it the
// keys' transposition and the softmax); bf16 the same. From memory, 8 queries at position 1023 in 30 layers, beside other work:
// 1.1 microseconds a span and KV head in bf16, 2.0 in fp32, 1.0 in int8 and 1.1 in fp8; where values are gathered into fp32 first
// and only a whole span is asked for at a time, 1.6, 2.4, 1.4 and 1.5.
#pragma once

#include "int8_rows.h"
#include "kernels.h"
#include "tile.h"
#include "transpose.h"

namespace {

using splice::cpu::ATTENTION_QUERY_TILE;
using splice::cpu::AttentionArgs;

constexpr int64_t SPAN = 32;
// So many rows wait for memory: they ask for it ahead; and those that fit one register tile read values where they lie.
constexpr int64_t WAITING_ROWS = 2 * LANES, FEW_ROWS = TILE_ROWS < 6 ? TILE_ROWS : 6;

// What a stored scale is multiplied with as it is read; 0: a type without scales.
template <class Element>
constexpr float SCALE_UNIT = 0.0f;
template <>
constexpr float SCALE_UNIT<int8_t> = 1.0f;
template <>
constexpr float SCALE_UNIT<Fp8> = FP8_UNIT;
template <class Element>
constexpr bool IS_SCALED = SCALE_UNIT<Element> != 0.0f;

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

// Where a span's keys and values are. Places past `count` repeat the last one: they may be read and count for nothing.
template <class Element>
struct SpanRows {
  const Element *keys[SPAN], *values[SPAN];
  float key_scales[SPAN], value_scales[SPAN];  // of scaled types only
  bool contiguous;                             // whether values follow one another in the cache

  SPLICE_MEMBER void find(const AttentionArgs& args, const int32_t* table, int64_t head, int64_t start, int64_t count) {
    const splice_cpu_kv& kv = args.kv;
    const int64_t plane = kv_plane_bytes(kv);
    contiguous = kv.block_tokens % SPAN == 0;
    const int64_t scales = kv.block_tokens * kv.head_dim;
    int64_t block = start / kv.block_tokens, offset = start % kv.block_tokens;
    for (int64_t j = 0, run; j < count; j += run, ++block, offset = 0) {
      run = kv.block_tokens - offset < count - j ? kv.block_tokens - offset : count - j;
      const uint8_t* base = kv_head(kv, args.layer, table[block], head);
      const auto* key = reinterpret_cast<const Element*>(base);
      const auto* value = reinterpret_cast<const Element*>(base + kv.kv_heads * plane);
      for (int64_t i = 0; i < run; ++i) {
        keys[j + i] = key + (offset + i) * kv.head_dim;
        values[j + i] = value + (offset + i) * kv.head_dim;
        if constexpr (IS_SCALED<Element>) {
          key_scales[j + i] = reinterpret_cast<const float*>(key + scales)[offset + i] * SCALE_UNIT<Element>;
          value_scales[j + i] = reinterpret_cast<const float*>(value + scales)[offset + i] * SCALE_UNIT<Element>;
        }
      }
    }
    for (int64_t j = count; j < SPAN; ++j) {
      keys[j] = keys[count - 1];
      values[j] = values[count - 1];
      key_scales[j] = value_scales[j] = 0.0f;
    }
  }
};

// A span and the keys of the one after it, if any. The cores' own prefetchers end at every page, and a head's rows in a block
// are a page or two; so the 32 rows ahead of those in hand are asked for: values beside keys, the next keys beside values.
template <class Element>
struct Reading {
  const SpanRows<Element>& span;
  const SpanRows<Element>* next;  // null: no more, or too many rows to wait for memory
  bool asks;

  SPLICE_MEMBER void at_key(int64_t j, int64_t head_dim) const {
    if (asks) ask_for(span.values[j], 0, head_dim);
  }
  SPLICE_MEMBER void at_value(int64_t j, int64_t first, int64_t last) const {
    if (next) ask_for(next->keys[j], first, last);
  }

 private:
  // Elements [first, last) of a row, its lines counted from its first.
  SPLICE_MEMBER static void ask_for(const Element* row, int64_t first, int64_t last) {
    constexpr int64_t LINE = 64 / static_cast<int64_t>(sizeof(Element));
    for (int64_t d = (first + LINE - 1) / LINE * LINE; d < last; d += LINE) __builtin_prefetch(row + d);
  }
};

// Values of `count` positions as fp32 rows of `dim`; the cache itself where it already is that.
template <class Element>
SPLICE_INLINE const float* gather_values(const Reading<Element>& reading, int64_t head_dim, int64_t count, float* dst,
                                         int64_t dim) {
  const SpanRows<Element>& span = reading.span;
  if constexpr (sizeof(Element) == sizeof(float))
    if (head_dim == dim && span.contiguous) {
      for (int64_t j = 0; j < count; ++j) reading.at_value(j, 0, head_dim);
      return span.values[0];
    }
  for (int64_t j = 0; j < count; ++j) {
    reading.at_value(j, 0, head_dim);
    const Element* row = span.values[j];
    float* out = dst + j * dim;
    int64_t d = 0;
    for (; d + LANES <= head_dim; d += LANES) store(out + d, elements(row + d));
    for (; d < dim; ++d) out[d] = d < head_dim ? element(row, d) : 0.0f;
  }
  return dst;
}

// Scores of one row become weights, zero outside [low, high); the row's sums and accumulator are brought to the new maximum.
template <class Element>
SPLICE_INLINE void soften_row(const AttentionTile& t, const SpanRows<Element>& span, int64_t row, int64_t low, int64_t high) {
  float* scores = t.scores + row * SPAN;
  float* acc = t.acc + row * t.dim;
  // What a query does not see may be anything, NaN too.
  for (int64_t j = 0; j < low; ++j) scores[j] = -__builtin_inff();
  for (int64_t j = high; j < SPAN; ++j) scores[j] = -__builtin_inff();
  const float before = t.maxima[row];
  const float span_maximum = largest(max(load(scores), load(scores + LANES)));
  const float maximum = span_maximum > before ? span_maximum : before;
  F16 first = exp(sub(load(scores), splat(maximum)));
  F16 second = exp(sub(load(scores + LANES), splat(maximum)));
  if (low > 0 || high < SPAN) {
    store(scores, first);
    store(scores + LANES, second);
    for (int64_t j = 0; j < low; ++j) scores[j] = 0.0f;
    for (int64_t j = high; j < SPAN; ++j) scores[j] = 0.0f;
    first = load(scores);
    second = load(scores + LANES);
  }
  const F16 scale = exp(splat(before - maximum));
  store(t.sums + row * LANES, fma(load(t.sums + row * LANES), scale, add(first, second)));
  if constexpr (IS_SCALED<Element>) {
    first = mul(first, load(span.value_scales));
    second = mul(second, load(span.value_scales + LANES));
  }
  store(scores, first);
  store(scores + LANES, second);
  for (int64_t d = 0; d < t.dim; d += LANES) store(acc + d, mul(load(acc + d), scale));
  t.maxima[row] = maximum;
}

// What becomes of a raw score before the softmax.
template <class Element>
SPLICE_INLINE void finish_scores(const AttentionArgs& args, const SpanRows<Element>& span, float* scores, int64_t rows) {
  if (!IS_SCALED<Element> && args.softcap == 0.0f) return;
  for (int64_t i = 0; i < rows * SPAN; i += LANES) {
    F16 score = load(scores + i);
    if constexpr (IS_SCALED<Element>) score = mul(score, load(span.key_scales + i % SPAN));
    if (args.softcap != 0.0f) score = mul(splat(args.softcap), tanh(div(score, splat(args.softcap))));
    store(scores + i, score);
  }
}

// acc[r] += Σ weights[r][j] · value j over j in [low, high), ascending; PANELS vectors from element `at` on, read where they lie.
template <class Element, int ROWS, int PANELS>
void few_values(const float* weights, const Reading<Element>& reading, int64_t at, int64_t low, int64_t high, float* acc,
                int64_t dim) {
  F16 sums[ROWS][PANELS];
  read_tile(sums, acc + at, dim, LANES, true);
  for (int64_t j = low; j < high; ++j) {
    reading.at_value(j, at, at + PANELS * LANES);
    F16 values[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) values[p] = elements(reading.span.values[j] + at + p * LANES);
    multiply_add(sums, values, weights + j, SPAN);
  }
  write_tile(sums, acc + at, dim, LANES);
}

// The same for up to FEW_ROWS rows and all of a value.
template <class Element>
SPLICE_INLINE void multiply_values(const float* weights, const Reading<Element>& reading, int64_t low, int64_t high, float* acc,
                                   int64_t dim, int64_t rows) {
  with_rows<FEW_ROWS>(rows, [&]<int ROWS>() {
    constexpr int WIDE = panels_for(ROWS);
    int64_t at = 0;
    for (; at + WIDE * LANES <= dim; at += WIDE * LANES)
      few_values<Element, ROWS, WIDE>(weights, reading, at, low, high, acc, dim);
    for (; at < dim; at += LANES) few_values<Element, ROWS, 1>(weights, reading, at, low, high, acc, dim);
  });
}

template <class Element>
SPLICE_INLINE void attend_span(const AttentionArgs& args, const AttentionTile& t, const Reading<Element>& reading, int64_t group,
                               int64_t start, int64_t count, int64_t first_position) {
  // Queries that see any of the span: those not before it, and whose window has not left it behind.
  const int64_t queries = t.rows / group;
  const int64_t first = first_position < start ? start - first_position : 0;
  int64_t last = queries;
  if (args.window > 0 && start + SPAN + args.window - 1 - first_position < last)
    last = start + SPAN + args.window - 1 - first_position;
  if (first >= last) return;

  const SpanRows<Element>& span = reading.span;
  for (int64_t j = 0; j < SPAN; j += 8) {
    for (int64_t i = j; i < j + 8; ++i) reading.at_key(i, args.kv.head_dim);
    transpose_rows(span.keys + j, args.kv.head_dim, t.keys + j / LANES * LANES * t.dim + j % LANES);
  }
  const bool in_place = t.rows <= FEW_ROWS && t.dim == args.kv.head_dim;
  const float* values = in_place ? nullptr : gather_values(reading, args.kv.head_dim, count, t.values, t.dim);
  const PanelsF32 keys{t.keys, LANES * t.dim, LANES};
  const int64_t panels = t.dim / LANES, row = first * group, rows = (last - first) * group;
  multiply_rows(t.queries + row * t.dim, t.dim, keys, SPAN / LANES, args.kv.head_dim, t.scores + row * SPAN, SPAN, LANES, rows,
                false);
  finish_scores(args, span, t.scores + row * SPAN, rows);

  const auto add_values = [&](int64_t query, int64_t count_of_queries, int64_t low, int64_t high) {
    const int64_t first_row = query * group, count_of_rows = count_of_queries * group;
    for (int64_t r = first_row; r < first_row + count_of_rows; ++r) soften_row(t, span, r, low, high);
    const float* weights = t.scores + first_row * SPAN;
    float* acc = t.acc + first_row * t.dim;
    if (in_place)
      multiply_values(weights, reading, low, high, acc, t.dim, count_of_rows);
    else
      multiply_rows(weights + low, SPAN, {values + low * t.dim, LANES, t.dim}, panels, high - low, acc, t.dim, LANES,
                    count_of_rows, true);
  };
  // Those that see a part of the span, each its own, go one by one; all others share a product.
  for (int64_t query = first, run; query < last; query += run) {
    const int64_t position = first_position + query;
    const int64_t beyond = args.window > 0 ? position - args.window + 1 - start : 0, low = beyond > 0 ? beyond : 0;
    const int64_t high = position - start + 1 < SPAN ? position - start + 1 : SPAN;
    run = 1;
    if (low == 0 && high == SPAN) run = args.window > 0 && -beyond + 1 < last - query ? -beyond + 1 : last - query;
    add_values(query, run, low, high);
  }
}

// Divides by the sum of the weights; a sink has its share of it.
SPLICE_INLINE void finish_row(const AttentionTile& t, int64_t row, const float* sink) {
  F16 total = splat(sum(load(t.sums + row * LANES))), scale = splat(1.0f);
  if (sink) {
    const float maximum = *sink > t.maxima[row] ? *sink : t.maxima[row];
    scale = exp(splat(t.maxima[row] - maximum));
    total = fma(total, scale, exp(splat(*sink - maximum)));
  }
  float* value = t.acc + row * t.dim;
  for (int64_t d = 0; d < t.dim; d += LANES) {
    const F16 weighted = sink ? mul(load(value + d), scale) : load(value + d);
    store(value + d, div(weighted, total));
  }
}

template <class Element>
SPLICE_INLINE void attend(const AttentionArgs& args, const AttentionTile& t, int64_t sequence, int64_t head, int64_t group,
                          int64_t first_position, int64_t end) {
  const int32_t* table = args.block_tables + sequence * args.table_stride;
  const int64_t oldest = args.window > 0 && first_position >= args.window ? first_position - args.window + 1 : 0;
  const auto count_at = [end](int64_t start) { return end - start < SPAN ? end - start : SPAN; };
  const bool asks = t.rows <= WAITING_ROWS;
  SpanRows<Element> spans[2];
  int64_t start = oldest / SPAN * SPAN;
  spans[0].find(args, table, head, start, count_at(start));
  for (int now = 0; start < end; start += SPAN, now ^= 1) {
    SpanRows<Element>& next = spans[now ^ 1];
    const bool more = start + SPAN < end;
    if (more) next.find(args, table, head, start + SPAN, count_at(start + SPAN));
    const Reading<Element> reading{spans[now], more && asks ? &next : nullptr, asks};
    attend_span(args, t, reading, group, start, count_at(start), first_position);
  }
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
  const int64_t first_position = args.starts[sequence] + first, end = args.starts[sequence] + last;
  if (args.kv.dtype == SPLICE_CPU_F32)
    attend<float>(args, t, sequence, head, group, first_position, end);
  else if (args.kv.dtype == SPLICE_CPU_BF16)
    attend<uint16_t>(args, t, sequence, head, group, first_position, end);
  else if (args.kv.dtype == SPLICE_CPU_INT8)
    attend<int8_t>(args, t, sequence, head, group, first_position, end);
  else
    attend<Fp8>(args, t, sequence, head, group, first_position, end);

  for (int64_t row = 0; row < t.rows; ++row) {
    const int64_t own = head * group + row % group;
    finish_row(t, row, args.sinks ? args.sinks + own : nullptr);
    const int64_t place = (query_row + row / group) * args.q_heads + own;
    if (!args.out8)
      __builtin_memcpy(args.out + place * head_dim, t.acc + row * t.dim, sizeof(float) * static_cast<size_t>(head_dim));
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
