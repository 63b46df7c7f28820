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

#include "attention_tile.h"

namespace splice::cuda {

constexpr int LATENT_SPAN_KEYS = 1024, LATENT_SPAN_TILES = LATENT_SPAN_KEYS / TILE_KEYS, PART_KEYS = 16;
constexpr int KEY_PARTS = TILE_KEYS / PART_KEYS, HALF_KEYS = TILE_KEYS / 2;  // a half of a tile is what is loaded at a time
constexpr int LATENT_WARPS = 8, LATENT_THREADS = LATENT_WARPS * WARP;
constexpr int MIN_HALVES = 2, MAX_HALVES = 4;

template <int rank_, int rope_>
struct LatentShape {
  static constexpr int rank = rank_, width = rank_ + rope_, chunks = width / CHUNK_ELEMENTS;
  static constexpr int row_chunks = ROW_CHUNKS<width>;                      // in shared memory
  static constexpr int fragments = rank / FRAGMENT_COLUMNS / LATENT_WARPS;  // of values, a warp
  static constexpr int half_chunks = HALF_KEYS * row_chunks;
  static_assert(width % 16 == 0 && rank % LATENT_WARPS == 0 && (fragments == 4 || fragments == 8));
};

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

// Query row r of a sequence is token r / heads, head r mod heads.
struct LatentRows {
  const splice_cuda_latent_attention& args;
  int64_t first_row, start;
  uint32_t count, heads;
  const int32_t* blocks;

  SPLICE_DEVICE LatentRows(const splice_cuda_latent_attention& a, int64_t sequence)
      : args(a), first_row(a.query_starts[sequence]), start(a.starts[sequence]),
        count(static_cast<uint32_t>((a.query_starts[sequence + 1] - first_row) * a.heads)), heads(static_cast<uint32_t>(a.heads)),
        blocks(a.block_tables + sequence * a.table_stride) {}

  // One past the last position that a row sees; of rows past the last, 0.
  SPLICE_DEVICE int64_t end(uint32_t row) const { return row < count ? start + row / heads + 1 : 0; }
  SPLICE_DEVICE int64_t token(uint32_t row) const { return first_row + row / heads; }
  SPLICE_DEVICE int64_t place(uint32_t row) const { return token(row) * heads + row % heads; }
  SPLICE_DEVICE uint16_t* out(uint32_t row) const {
    return static_cast<uint16_t*>(args.out) + token(row) * args.out_row_stride + row % heads * args.out_head_stride;
  }
};

SPLICE_BOTH const uint16_t* latent_row(const splice_cuda_latents& cache, int64_t layer, int64_t block, int64_t offset) {
  const int64_t rows = (block * cache.layers + layer) * cache.block_tokens + offset;
  return static_cast<const uint16_t*>(cache.data) + rows * (cache.rank + cache.rope);
}

// Starts copies of query rows first…first + count into shared memory, [absorbed | rotated]; rows past the last are zeros.
template <class Shape>
SPLICE_DEVICE void start_latent_queries(const LatentRows& rows, uint32_t first, int count, Chunk* to) {
  constexpr int latent_chunks = Shape::rank / CHUNK_ELEMENTS;
  const splice_cuda_latent_attention& args = rows.args;
  for (int i = thread_index(); i < count * Shape::chunks; i += block_threads()) {
    const int at = i / Shape::chunks, chunk = i % Shape::chunks;
    const uint32_t row = first + static_cast<uint32_t>(at), head = row % rows.heads;
    const bool valid = row < rows.count;
    const auto* from = static_cast<const uint16_t*>(args.absorbed);
    if (valid && chunk < latent_chunks)
      from += rows.token(row) * args.absorbed_row_stride + head * args.absorbed_head_stride + chunk * CHUNK_ELEMENTS;
    else if (valid)
      from = static_cast<const uint16_t*>(args.rotated) + rows.token(row) * args.rotated_row_stride + head * args.rotated_head_stride +
             (chunk - latent_chunks) * CHUNK_ELEMENTS;
    start_copy(to + chunk_place<Shape::width>(at, chunk), from, valid);
  }
}

// Starts copies of 32 positions; from `end` on they are zeros: what the cache holds there is never read.
template <class Shape>
SPLICE_DEVICE void start_half(const LatentRows& rows, int shift, int64_t half, int64_t end, Chunk* to) {
  const splice_cuda_latent_attention& args = rows.args;
  SPLICE_UNROLL_BY_3
  for (int i = thread_index(); i < HALF_KEYS * Shape::chunks; i += block_threads()) {
    const int row = i / Shape::chunks, chunk = i % Shape::chunks;
    const int64_t key = half * HALF_KEYS + row;
    const bool valid = key < end;
    const auto* from = static_cast<const uint16_t*>(args.cache.data);
    if (valid)
      from = latent_row(args.cache, args.layer, rows.blocks[key >> shift], key & ((int64_t{1} << shift) - 1)) + chunk * CHUNK_ELEMENTS;
    start_copy(to + chunk_place<Shape::width>(row, chunk), from, valid);
  }
}

SPLICE_DEVICE void wait_for_all_but(int groups) {
  if (groups == 0)
    wait_copies<0>();
  else if (groups == 1)
    wait_copies<1>();
  else
    wait_copies<2>();
}

// What a warp of the scores knows of its rows: fragments of 16, of each the two rows that a thread has a part of.
template <int count>
struct LatentState {
  float maximum[count][2], total[count][2];  // of the span; the sum, of this thread's keys

  SPLICE_DEVICE void clear() {
    SPLICE_UNROLL
    for (int i = 0; i < 2 * count; ++i) {
      maximum[i / 2][i % 2] = NEGATIVE_INFINITY;
      total[i / 2][i % 2] = 0.0f;
    }
  }
};

// A row in shared memory, as chunk_place has it, and of its chunks the even (`odd` 0) or the odd ones. All that is not a constant is one
// exclusive or of eight values: were the compiler left to find that, it would keep an address for every step.
template <class Shape>
struct LatentRow {
  const Chunk* start;
  int turn;

  SPLICE_DEVICE LatentRow(const Chunk* rows, int row, int odd) : start(rows + row * Shape::row_chunks), turn(row % 8 ^ odd) {}
  // The chunk `even`, or the one after it.
  SPLICE_DEVICE const Chunk* at(int even) const { return start + even / 8 * 8 + (even % 8 ^ turn); }
};

// scores[f] = rows of fragment f · the 16 keys of a part, over the whole width in ascending order.
template <class Shape, int count>
SPLICE_DEVICE void multiply_latents(const Chunk* queries, const Chunk* keys, float (&scores)[count][2][4]) {
  const int lane = thread_index() % WARP, matrix = lane / 8, row = lane % 8;
  const LatentRow<Shape> key(keys, matrix / 2 * 8 + row, matrix % 2), query(queries, matrix % 2 * 8 + row, matrix / 2);
  SPLICE_UNROLL
  for (int step = 0; step < Shape::width / 16; ++step) {
    uint32_t k[4];
    load_matrices(k, key.at(2 * step));
    SPLICE_UNROLL
    for (int fragment = 0; fragment < count; ++fragment) {
      uint32_t q[4];
      load_matrices(q, query.at(2 * step) + fragment * FRAGMENT_ROWS * Shape::row_chunks);
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
  const int lane = thread_index() % WARP, warp = thread_index() / WARP, matrix = lane / 8, row = lane % 8;
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
  // A warp's dimensions begin at a chunk that is a multiple of 4 or 8: its place in a group of eight takes part in the turn.
  constexpr int mine = Shape::fragments % 8;
  const int odd = matrix / 2 ^ warp * mine % 8, own = warp * Shape::fragments / 8 * 8;
  const LatentRow<Shape> first(first_half + own, matrix % 2 * 8 + row, odd), second(second_half + own, matrix % 2 * 8 + row, odd);
  SPLICE_UNROLL
  for (int part = 0; part < KEY_PARTS; ++part) {
    const LatentRow<Shape>& keys = part < KEY_PARTS / 2 ? first : second;
    Chunk w[groups];
    SPLICE_UNROLL
    for (int group = 0; group < groups; ++group) w[group] = shared.weights[part][group][lane];
    SPLICE_UNROLL
    for (int fragment = 0; fragment < Shape::fragments; fragment += 2) {
      uint32_t v[4];
      load_matrices_transposed(v, keys.at(fragment) + part % (KEY_PARTS / 2) * PART_KEYS * Shape::row_chunks);
      SPLICE_UNROLL
      for (int group = 0; group < groups; ++group) {
        multiply_fragments(acc[group][fragment], w[group].word, v[0], v[1]);
        multiply_fragments(acc[group][fragment + 1], w[group].word, v[2], v[3]);
      }
    }
  }
}

// Walks rows first…first + 16·groups over tiles first_tile…last_tile. At the end of a span calls close(span, acc) in every thread,
// with the span's accumulators; before it, fold(row, maximum, total) once for each row with the span's own. Nobody may be using
// `shared` any more.
template <class Shape, int groups, class Fold, class Close>
SPLICE_DEVICE void attend_latents(const LatentRows& rows, uint32_t first, int shift, int64_t first_tile, int64_t last_tile, int64_t end,
                                  int halves, LatentShared<Shape, groups>& shared, const Fold& fold, const Close& close) {
  constexpr int row_parts = groups == 1 ? 1 : 2, count = groups / row_parts;
  const int lane = thread_index() % WARP, warp = thread_index() / WARP, part = warp % KEY_PARTS, row_part = warp / KEY_PARTS;
  const bool scoring = row_part < row_parts;
  const float scale = product(rows.args.scale, LOG2_E);
  const auto local_row = [&](int fragment, int half) { return (row_part * count + fragment) * FRAGMENT_ROWS + half * 8 + lane / 4; };
  const auto start = [&](int64_t half, int place) {
    if (half < 2 * last_tile) start_half<Shape>(rows, shift, half, end, shared.half(place));
    close_copies();
  };

  start_latent_queries<Shape>(rows, first, shared.rows, shared.queries);
  for (int i = 0; i < halves; ++i) start(2 * first_tile + i, i);

  LatentState<count> state;
  state.clear();
  int ends[count][2];
  SPLICE_UNROLL
  for (int i = 0; i < 2 * count; ++i) ends[i / 2][i % 2] = static_cast<int>(rows.end(first + static_cast<uint32_t>(local_row(i / 2, i % 2))));
  float acc[groups][Shape::fragments][4] = {};
  int place = 0;  // of the tile's first half in the ring
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    const int next = place + 1 == halves ? 0 : place + 1;
    const Chunk *first_half = shared.half(place), *second_half = shared.half(next);
    wait_for_all_but(halves - MIN_HALVES);
    barrier();
    float scores[count][2][4] = {};
    if (scoring) {
      const Chunk* keys = (part < KEY_PARTS / 2 ? first_half : second_half) + part % (KEY_PARTS / 2) * PART_KEYS * Shape::row_chunks;
      multiply_latents<Shape, count>(shared.queries + row_part * count * FRAGMENT_ROWS * Shape::row_chunks, keys, scores);
      int limit[count][2];
      float most[count][2];
      SPLICE_UNROLL
      for (int i = 0; i < 2 * count; ++i) {
        const int seen = ends[i / 2][i % 2] - static_cast<int>(tile) * TILE_KEYS - part * PART_KEYS;
        limit[i / 2][i % 2] = seen < 0 ? 0 : seen < PART_KEYS ? seen : PART_KEYS;
      }
      scale_scores<count>(scale, limit, scores, most);
      SPLICE_UNROLL
      for (int i = 0; i < 2 * count; ++i) {
        const float largest = quad_maximum(most[i / 2][i % 2]);
        if (lane % 4 == 0) shared.by_part[part][local_row(i / 2, i % 2)] = largest;
      }
    }
    barrier();
    if (scoring) {
      SPLICE_UNROLL
      for (int fragment = 0; fragment < count; ++fragment) {
        Chunk weights;
        SPLICE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = local_row(fragment, half);
          float largest = shared.by_part[0][row];
          SPLICE_UNROLL
          for (int i = 1; i < KEY_PARTS; ++i) largest = shared.by_part[i][row] > largest ? shared.by_part[i][row] : largest;
          const Shares shares = joined(state.maximum[fragment][half], largest);
          state.maximum[fragment][half] = shares.maximum;
          state.total[fragment][half] = product(state.total[fragment][half], shares.own);
          const float level = shares.maximum == NEGATIVE_INFINITY ? 0.0f : shares.maximum;
          soften_four(scores[fragment], half, level, state.total[fragment][half], weights);
          if (part == 0 && lane % 4 == 0) shared.rescale[row] = shares.own;
        }
        shared.weights[part][row_part * count + fragment][lane] = weights;
      }
    }
    barrier();
    multiply_latent_values<Shape, groups>(shared, first_half, second_half, acc);
    barrier();  // everybody is done with both halves
    start(2 * tile + halves, place);
    start(2 * tile + halves + 1, next);
    place = next + 1 == halves ? 0 : next + 1;
    if (tile % LATENT_SPAN_TILES != LATENT_SPAN_TILES - 1 && tile != last_tile - 1) continue;

    if (scoring) {
      SPLICE_UNROLL
      for (int i = 0; i < 2 * count; ++i) {
        float total = state.total[i / 2][i % 2];
        total = sum(total, from_lane_xor(total, 1));
        total = sum(total, from_lane_xor(total, 2));
        if (lane % 4 == 0) shared.by_part[part][local_row(i / 2, i % 2)] = total;
        if (lane % 4 == 0 && part == 0) shared.own[local_row(i / 2, i % 2)] = state.maximum[i / 2][i % 2];
      }
    }
    barrier();
    if (thread_index() < shared.rows) {
      const int row = thread_index();
      float total = shared.by_part[0][row];
      SPLICE_UNROLL
      for (int i = 1; i < KEY_PARTS; ++i) total = sum(total, shared.by_part[i][row]);
      fold(row, shared.own[row], total);
    }
    barrier();
    close(tile / LATENT_SPAN_TILES, acc);
    state.clear();
    SPLICE_UNROLL
    for (int i = 0; i < groups * Shape::fragments * 4; ++i) acc[i / 4 / Shape::fragments][i / 4 % Shape::fragments][i % 4] = 0.0f;
  }
  wait_copies<0>();
}

}  // namespace splice::cuda
