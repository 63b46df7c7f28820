// Attention of query rows over a tile of latents (DeepSeek-V2, arXiv 2405.04434, absorbed form): what decode and prefill share, so
// that a row's bits do not depend on which of them computed it, nor on how many rows a block took at once.
//
// A cache row is [latent | rotated key]; all of it is the key, the latent alone the value, for every head. Positions are cut, from 0
// on, into spans of 1024 keys (attention over heads has 256; here what a span leaves behind, rank floats for every head, must stay
// small beside its keys), spans into tiles of 64, tiles into four parts of 16 keys. A row's arithmetic in a tile: 64 scores, each one
// chain over the whole width in steps of 16; their maximum; weights; a sum for each part and each of the four threads of a row; and
// the weighted values, one chain over the tile's keys in steps of 16. At the end of a span the sums of threads are added as in
// attention_tile.h, then those of parts, in ascending order.
//
// Eight warps. For scores a warp has one part and one or two fragments of rows, for values an eighth of the rank and all rows. The
// weights go from the one to the other through shared memory, as fragments.
#pragma once

#include "latent_rows.h"

namespace splice::cuda {

// Of a block with `groups` fragments of 16 rows; behind it lies the ring of halves.
template <class Shape, int groups>
struct LatentShared {
  static constexpr int rows = groups * FRAGMENT_ROWS;
  Chunk queries[rows * Shape::row_chunks];
  Chunk weights[KEY_PARTS][groups][WARP];
  float by_part[KEY_PARTS][rows];  // maxima in a tile, sums at the end of a span
  float rescale[rows];
  float maximum[rows], total[rows];  // of the spans that are done
  float own[rows], other[rows];      // shares of those and of the span that ends

  SPLICE_DEVICE Chunk* half(int place) { return reinterpret_cast<Chunk*>(this + 1) + place * Shape::half_chunks; }
};

SPLICE_DEVICE void wait_for_all_but(int groups) {
  if (groups == 0)
    wait_copies<0>();
  else if (groups == 1)
    wait_copies<1>();
  else
    wait_copies<2>();
}

// scores[f] = rows of fragment f · the 16 keys of a part, over the whole width in ascending order.
template <class Shape, int count>
SPLICE_DEVICE void multiply_latents(const Chunk* queries, const Chunk* keys, float (&scores)[count][2][4]) {
  const int lane = thread_index() % WARP, matrix = lane / 8, row = lane % 8;
  const SharedRow<Shape::width> key(keys, matrix / 2 * 8 + row, matrix % 2), query(queries, matrix % 2 * 8 + row, matrix / 2);
  SPLICE_UNROLL
  for (int step = 0; step < Shape::width / 16; ++step) {
    uint32_t k[4];
    load_matrices(k, key.at(2 * step));
    SPLICE_UNROLL
    for (int fragment = 0; fragment < count; ++fragment) {
      uint32_t q[4];
      load_matrices(q, query.at(2 * step, fragment * FRAGMENT_ROWS));
      multiply_fragments(scores[fragment][0], q, k[0], k[1]);
      multiply_fragments(scores[fragment][1], q, k[2], k[3]);
    }
  }
}

// Raw products become scores; returns in `most` the largest of this thread's four of each row. `limit` counts the part's keys that a
// row sees.
template <int count>
SPLICE_DEVICE void scale_scores(float scale, const int (&limit)[count][2], float (&scores)[count][2][4], float (&most)[count][2]) {
  const int quad = thread_index() % 4;
  SPLICE_UNROLL
  for (int fragment = 0; fragment < count; ++fragment) {
    most[fragment][0] = most[fragment][1] = NEGATIVE_INFINITY;
    SPLICE_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int key = i / 4 * FRAGMENT_COLUMNS + 2 * quad + i % 2, row = i / 2 % 2;
      float& score = scores[fragment][i / 4][i % 4];
      score = key < limit[fragment][row] ? product(score, scale) : NEGATIVE_INFINITY;
      most[fragment][row] = score > most[fragment][row] ? score : most[fragment][row];
    }
  }
}

// Weights of one row's four scores in a thread, added to `total` and packed as two words of a fragment.
SPLICE_DEVICE void soften_four(const float (&scores)[2][4], int row, float level, float& total, Chunk& weights) {
  SPLICE_UNROLL
  for (int column = 0; column < 2; ++column) {
    const float first = power_of_two(sum(scores[column][2 * row], -level)), second = power_of_two(sum(scores[column][2 * row + 1], -level));
    total = sum(total, sum(first, second));
    weights.word[2 * column + row] = to_bf16_pair(first, second);
  }
}

// acc = acc·rescale + weights · values of a tile, of this warp's dimensions.
template <class Shape, int groups>
SPLICE_DEVICE void multiply_latent_values(const LatentShared<Shape, groups>& shared, const Chunk* first_half, const Chunk* second_half,
                                          float (&acc)[groups][Shape::fragments][4]) {
  const int lane = thread_index() % WARP, dimensions = thread_index() / WARP * Shape::fragments;
  const auto first = value_row<Shape::width>(first_half, dimensions), second = value_row<Shape::width>(second_half, dimensions);
  float rescale[groups][2];
  bool changed = false;
  SPLICE_UNROLL
  for (int i = 0; i < 2 * groups; ++i) {
    rescale[i / 2][i % 2] = shared.rescale[i * 8 + lane / 4];
    changed |= rescale[i / 2][i % 2] != 1.0f;
  }
  if (lanes_where(changed)) {  // a product with 1 changes no bit: maxima settle soon
    SPLICE_UNROLL
    for (int group = 0; group < groups; ++group) {
      SPLICE_UNROLL
      for (int i = 0; i < 4 * Shape::fragments; ++i)
        acc[group][i / 4][i % 4] = product(acc[group][i / 4][i % 4], rescale[group][i % 4 / 2]);
    }
  }
  SPLICE_UNROLL
  for (int part = 0; part < KEY_PARTS; ++part) {
    const SharedRow<Shape::width>& keys = part < KEY_PARTS / 2 ? first : second;
    Chunk w[groups];
    SPLICE_UNROLL
    for (int group = 0; group < groups; ++group) w[group] = shared.weights[part][group][lane];
    SPLICE_UNROLL
    for (int fragment = 0; fragment < Shape::fragments; fragment += 2) {
      uint32_t v[4];
      load_matrices_transposed(v, keys.at(fragment, part % (KEY_PARTS / 2) * PART_KEYS));
      SPLICE_UNROLL
      for (int group = 0; group < groups; ++group) {
        multiply_fragments(acc[group][fragment], w[group].word, v[0], v[1]);
        multiply_fragments(acc[group][fragment + 1], w[group].word, v[2], v[3]);
      }
    }
  }
}

// A warp's part in the scores: 16 keys of each tile, and one or two fragments of rows, of each the two that a thread has a part of.
// With 16 rows half of the warps have none.
template <class Shape, int groups>
struct LatentScores {
  static constexpr int row_parts = groups == 1 ? 1 : 2, count = groups / row_parts;
  LatentShared<Shape, groups>& shared;
  int lane, part, row_part;
  float scale;
  int ends[count][2];
  float maximum[count][2], total[count][2];  // of the span; the sum, of this thread's keys
  float scores[count][2][4];

  SPLICE_DEVICE LatentScores(const LatentRows& rows, uint32_t first, LatentShared<Shape, groups>& s)
      : shared(s), lane(thread_index() % WARP), part(thread_index() / WARP % KEY_PARTS), row_part(thread_index() / WARP / KEY_PARTS),
        scale(product(rows.args.scale, LOG2_E)) {
    SPLICE_UNROLL
    for (int i = 0; i < 2 * count; ++i) ends[i / 2][i % 2] = rows.end(first + static_cast<uint32_t>(row(i)));
    begin_span();
  }

  SPLICE_DEVICE bool idle() const { return row_part >= row_parts; }
  // Of the block's: row i % 2 of fragment i / 2.
  SPLICE_DEVICE int row(int i) const { return (row_part * count + i / 2) * FRAGMENT_ROWS + i % 2 * 8 + lane / 4; }

  SPLICE_DEVICE void begin_span() {
    SPLICE_UNROLL
    for (int i = 0; i < 2 * count; ++i) {
      maximum[i / 2][i % 2] = NEGATIVE_INFINITY;
      total[i / 2][i % 2] = 0.0f;
    }
  }

  // The scores of a tile; each row's largest goes to shared memory.
  SPLICE_DEVICE void multiply(int tile, const Chunk* first_half, const Chunk* second_half) {
    if (idle()) return;
    const Chunk* keys = (part < KEY_PARTS / 2 ? first_half : second_half) + part % (KEY_PARTS / 2) * PART_KEYS * Shape::row_chunks;
    int limit[count][2];
    float most[count][2];
    SPLICE_UNROLL
    for (int i = 0; i < 2 * count; ++i) {
      const int seen = ends[i / 2][i % 2] - tile * TILE_KEYS - part * PART_KEYS;
      limit[i / 2][i % 2] = seen < 0 ? 0 : seen < PART_KEYS ? seen : PART_KEYS;
    }
    SPLICE_UNROLL
    for (int i = 0; i < 8 * count; ++i) scores[i / 8][i / 4 % 2][i % 4] = 0.0f;
    multiply_latents<Shape, count>(shared.queries + row_part * count * FRAGMENT_ROWS * Shape::row_chunks, keys, scores);
    scale_scores<count>(scale, limit, scores, most);
    SPLICE_UNROLL
    for (int i = 0; i < 2 * count; ++i) {
      const float largest = quad_maximum(most[i / 2][i % 2]);
      if (lane % 4 == 0) shared.by_part[part][row(i)] = largest;
    }
  }

  // Their weights go to shared memory, and what accumulators of a row are to be multiplied with.
  SPLICE_DEVICE void soften() {
    if (idle()) return;
    Chunk weights[count];
    SPLICE_UNROLL
    for (int i = 0; i < 2 * count; ++i) {
      float largest = shared.by_part[0][row(i)];
      SPLICE_UNROLL
      for (int p = 1; p < KEY_PARTS; ++p) largest = shared.by_part[p][row(i)] > largest ? shared.by_part[p][row(i)] : largest;
      const Shares shares = joined(maximum[i / 2][i % 2], largest);
      const float level = shares.maximum == NEGATIVE_INFINITY ? 0.0f : shares.maximum;
      maximum[i / 2][i % 2] = shares.maximum;
      total[i / 2][i % 2] = product(total[i / 2][i % 2], shares.own);
      soften_four(scores[i / 2], i % 2, level, total[i / 2][i % 2], weights[i / 2]);
      if (part == 0 && lane % 4 == 0) shared.rescale[row(i)] = shares.own;
    }
    SPLICE_UNROLL
    for (int fragment = 0; fragment < count; ++fragment) shared.weights[part][row_part * count + fragment][lane] = weights[fragment];
  }

  // A span's sums by part, and its maxima, go to shared memory.
  SPLICE_DEVICE void end_span() const {
    if (idle()) return;
    SPLICE_UNROLL
    for (int i = 0; i < 2 * count; ++i) {
      float sums = total[i / 2][i % 2];
      sums = sum(sums, from_lane_xor(sums, 1));
      sums = sum(sums, from_lane_xor(sums, 2));
      if (lane % 4 == 0) shared.by_part[part][row(i)] = sums;
      if (lane % 4 == 0 && part == 0) shared.own[row(i)] = maximum[i / 2][i % 2];
    }
  }
};

// Walks rows first…first + 16·groups over tiles first_tile…last_tile. At the end of a span calls close(span, acc) in every thread,
// with the span's accumulators; before it, fold(row, maximum, total) once for each row with the span's own. Nobody may be using
// `shared` any more.
template <class Shape, int groups, class Fold, class Close>
SPLICE_DEVICE void attend_latents(const LatentRows& rows, uint32_t first, int shift, int first_tile, int last_tile, int end, int halves,
                                  LatentShared<Shape, groups>& shared, const Fold& fold, const Close& close) {
  const auto start = [&](int half, int place) {
    if (half < 2 * last_tile) start_half<Shape>(rows, shift, half, end, shared.half(place));
    close_copies();
  };
  start_latent_queries<Shape>(rows, first, shared.rows, shared.queries);
  for (int i = 0; i < halves; ++i) start(2 * first_tile + i, i);

  LatentScores<Shape, groups> scores(rows, first, shared);
  float acc[groups][Shape::fragments][4] = {};
  int place = 0;  // of the tile's first half in the ring
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const int next = place + 1 == halves ? 0 : place + 1;
    const Chunk *first_half = shared.half(place), *second_half = shared.half(next);
    wait_for_all_but(halves - MIN_HALVES);
    barrier();
    scores.multiply(tile, first_half, second_half);
    barrier();
    scores.soften();
    barrier();
    multiply_latent_values<Shape, groups>(shared, first_half, second_half, acc);
    barrier();  // everybody is done with both halves
    start(2 * tile + halves, place);
    start(2 * tile + halves + 1, next);
    place = next + 1 == halves ? 0 : next + 1;
    if (tile % LATENT_SPAN_TILES != LATENT_SPAN_TILES - 1 && tile != last_tile - 1) continue;

    scores.end_span();
    barrier();
    if (thread_index() < shared.rows) {
      const int row = thread_index();
      float total = shared.by_part[0][row];
      SPLICE_UNROLL
      for (int part = 1; part < KEY_PARTS; ++part) total = sum(total, shared.by_part[part][row]);
      fold(row, shared.own[row], total);
    }
    barrier();
    close(tile / LATENT_SPAN_TILES, acc);
    scores.begin_span();
    SPLICE_UNROLL
    for (int i = 0; i < groups * Shape::fragments * 4; ++i) acc[i / 4 / Shape::fragments][i / 4 % Shape::fragments][i % 4] = 0.0f;
  }
  wait_copies<0>();
}

}  // namespace splice::cuda
