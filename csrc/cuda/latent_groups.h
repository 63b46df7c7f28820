// Attention over a tile of latents by warpgroups: what a block of latent_attention_sm90.cu keeps in shared memory, how it gets there,
// and the products over it. A row's arithmetic is that of latent_tile.h, to the order of every sum.
#pragma once

#include "latent_parts.h"
#include "warpgroup.h"

namespace splice::cuda {

constexpr int GROUP_ROWS = 64, STAGES = 2, PIECES = 2;  // a piece of a tile's weights is handed over at a time
constexpr int COMPUTING = 2 * WARPGROUP, LOADING = WARPGROUP, GROUP_THREADS = COMPUTING + LOADING, STAGE_THREADS = LOADING / STAGES;
constexpr int COMPUTING_REGISTERS = 232, LOADING_REGISTERS = 40;  // of 168 each at launch
constexpr int PANEL = TILE_KEYS * PANEL_CHUNKS;                   // chunks
constexpr int WEIGHTS_BARRIER = 1, SPAN_BARRIER = WEIGHTS_BARRIER + STAGES * PIECES,
              SCORES_BARRIER = SPAN_BARRIER + 1;

// What a row's accumulators so far and those of the span that ends are multiplied with, and the sum of weights after it.
struct SpanEnd {
  float own[GROUP_ROWS], other[GROUP_ROWS], total[GROUP_ROWS];
};

template <class Shape>
struct alignas(PANEL_ALIGNMENT) LatentPanels {
  static constexpr int last = Shape::rank / PANEL_COLUMNS, panels = last + 1;  // the last has the rotated part
  static constexpr int columns = Shape::rank / 2, fragments = columns / FRAGMENT_COLUMNS;  // of values, a warpgroup
  static_assert(Shape::width <= panels * PANEL_COLUMNS && columns % PANEL_COLUMNS == 0);

  Chunk queries[panels][PANEL];
  Chunk keys[STAGES][panels][PANEL];  // weights take the place of the rotated part, once there are scores
  float rescale[STAGES][GROUP_ROWS];
  SpanEnd ends[2];  // of spans in turn
  SharedBarrier full[STAGES], empty[STAGES], queries_full, queries_empty;

  // By one thread.
  SPLICE_DEVICE void begin() {
    for (int stage = 0; stage < STAGES; ++stage) {
      full[stage].begin(STAGE_THREADS);
      empty[stage].begin(COMPUTING / WARP);
    }
    queries_full.begin(LOADING);
    queries_empty.begin(WARPGROUP / WARP);
  }
};

// Of queries or keys, rows of the product: 16 elements from `step`·16 on of the whole width.
SPLICE_DEVICE uint64_t rows_over(const Chunk* panels, int step) {
  constexpr int steps = PANEL_COLUMNS / 16;
  return rows_in(panels, step / steps * (PANEL / 2) + step % steps);
}

// Eight threads load a row's eight chunks of a panel, and of all panels; whoever has chunk 0…7 of which panels is there.
template <class Shape>
SPLICE_DEVICE bool in_panel(int panel, int chunk) {
  return Shape::chunks % PANEL_CHUNKS == 0 || panel * PANEL_CHUNKS + chunk < Shape::chunks;
}

// Starts copies of 64 query rows by all threads that load; rows past the last are zeros.
template <class Shape>
SPLICE_DEVICE void start_query_panels(const LatentRows& rows, uint32_t first, LatentPanels<Shape>& shared) {
  using Panels = LatentPanels<Shape>;
  const splice_cuda_latent_attention& args = rows.args;
  const int thread = thread_index() % WARPGROUP, chunk = thread % PANEL_CHUNKS;
  SPLICE_ROLLED
  for (int at = thread / PANEL_CHUNKS; at < GROUP_ROWS; at += LOADING / PANEL_CHUNKS) {
    const uint32_t row = first + static_cast<uint32_t>(at), head = row % rows.heads;
    const bool valid = row < rows.count;
    const auto *absorbed = static_cast<const uint16_t*>(args.absorbed), *rotated = static_cast<const uint16_t*>(args.rotated);
    if (valid) {
      absorbed += rows.token(row) * args.absorbed_row_stride + head * args.absorbed_head_stride + chunk * CHUNK_ELEMENTS;
      rotated += rows.token(row) * args.rotated_row_stride + head * args.rotated_head_stride + chunk * CHUNK_ELEMENTS;
    }
    Chunk* to = shared.queries[0] + panel_place(at, chunk);
    SPLICE_UNROLL
    for (int panel = 0; panel < Panels::last; ++panel) start_copy(to + panel * PANEL, valid ? absorbed + panel * PANEL_COLUMNS : absorbed, valid);
    if (in_panel<Shape>(Panels::last, chunk)) start_copy(to + Panels::last * PANEL, rotated, valid);
  }
}

// A tile for the threads of a stage, of which each loads its chunks of two rows of every sixteen: these share a block of the cache.
template <class Shape>
struct KeyRows {
  const LatentRows& rows;
  int shift, end, tile;
  int32_t blocks[KEY_PARTS];

  // Before there is room for a tile: where it lies.
  SPLICE_DEVICE void find(int next) {
    tile = next;
    SPLICE_UNROLL
    for (int part = 0; part < KEY_PARTS; ++part) {
      const int key = tile * TILE_KEYS + part * PART_KEYS;
      blocks[part] = key < end ? rows.blocks[key >> shift] : 0;
    }
  }
  // Starts copies; positions from `end` on are zeros: what the cache holds there is never read.
  SPLICE_DEVICE void start(Chunk* keys) const {
    static_assert(STAGE_THREADS == 8 * PANEL_CHUNKS && PART_KEYS == 16);
    using Panels = LatentPanels<Shape>;
    const splice_cuda_latent_attention& args = rows.args;
    const int row = thread_index() % STAGE_THREADS / PANEL_CHUNKS, chunk = thread_index() % PANEL_CHUNKS;
    SPLICE_UNROLL
    for (int part = 0; part < KEY_PARTS; ++part) {
      const int key = tile * TILE_KEYS + part * PART_KEYS + row;
      const uint16_t* from = latent_row(args.cache, args.layer, blocks[part], key & ((1 << shift) - 1)) + chunk * CHUNK_ELEMENTS;
      Chunk* to = keys + panel_place(part * PART_KEYS + row, chunk);
      SPLICE_UNROLL
      for (int lower = 0; lower < 16; lower += 8) {
        SPLICE_UNROLL
        for (int panel = 0; panel < Panels::panels; ++panel)
          if (in_panel<Shape>(panel, chunk))
            start_copy(to + panel * PANEL + lower * PANEL_CHUNKS, from + lower * Shape::width + panel * PANEL_COLUMNS, key + lower < end);
      }
    }
  }
};

// Of a thread's accumulators, in fragments as multiply_fragments has them: rows lane / 4 and lane / 4 + 8 of its warp's 16.
SPLICE_DEVICE int group_row(int i) { return thread_index() % WARPGROUP / WARP * FRAGMENT_ROWS + i * 8 + thread_index() % WARP / 4; }

template <int fragments>
SPLICE_DEVICE void rescale_rows(float (&acc)[fragments][4], const float (&rescale)[2]) {
  if (!lanes_where(rescale[0] != 1.0f || rescale[1] != 1.0f)) return;  // a product with 1 changes no bit: maxima settle soon
  SPLICE_UNROLL
  for (int i = 0; i < 4 * fragments; ++i) acc[i / 4][i % 4] = product(acc[i / 4][i % 4], rescale[i % 4 / 2]);
}

// Quotients by one number, rounded as `quotient` rounds them (Markstein 1990: two steps with a rounded inverse), in five operations
// each and without a branch. Dividends below 2^-100 may lose their last bit. The divisor is 1 at least, as sums of weights are.
struct Quotients {
  float divisor, inverse;

  SPLICE_DEVICE explicit Quotients(float by) : divisor(by), inverse(quotient(1.0f, by)) {}
  SPLICE_DEVICE float operator()(float dividend) const {
    const float estimate = product(dividend, inverse), missing = fused(-estimate, divisor, dividend);
    const float better = fused(missing, inverse, estimate);
    const float found = fused(fused(-better, divisor, dividend), inverse, better);
    return missing == missing ? found : estimate;  // infinite and NaN as they are
  }
};

// The first warpgroup's softmax over a span.
struct GroupScores {
  float maximum[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
  float total[KEY_PARTS][2] = {};  // of this thread's keys of each part
  float level[2];

  // Raw products of a tile become scores; `seen` counts its keys that a row sees. Returns what accumulators are to be multiplied with.
  SPLICE_DEVICE void scale(float factor, const int (&seen)[2], float (&scores)[TILE_COLUMNS][4], float (&rescale)[2]) {
    const int quad = thread_index() % 4;
    SPLICE_UNROLL
    for (int i = 0; i < 4 * TILE_COLUMNS; ++i) scores[i / 4][i % 4] = product(scores[i / 4][i % 4], factor);
    if (lanes_where(seen[0] < TILE_KEYS || seen[1] < TILE_KEYS)) {
      SPLICE_UNROLL
      for (int i = 0; i < 4 * TILE_COLUMNS; ++i)
        if (i / 4 * FRAGMENT_COLUMNS + 2 * quad + i % 2 >= seen[i / 2 % 2]) scores[i / 4][i % 4] = NEGATIVE_INFINITY;
    }
    SPLICE_UNROLL
    for (int row = 0; row < 2; ++row) {
      float most = NEGATIVE_INFINITY;
      SPLICE_UNROLL
      for (int i = 0; i < 2 * TILE_COLUMNS; ++i)
        most = larger_number(most, scores[i / 2][2 * row + i % 2]);
      const Shares shares = joined(maximum[row], quad_maximum(most));
      maximum[row] = shares.maximum;
      rescale[row] = shares.own;
      level[row] = shares.maximum == NEGATIVE_INFINITY ? 0.0f : shares.maximum;
      SPLICE_UNROLL
      for (int part = 0; part < KEY_PARTS; ++part) total[part][row] = product(total[part][row], shares.own);
    }
  }

  // A part's weights, as a fragment.
  SPLICE_DEVICE void soften(int part, const float (&scores)[TILE_COLUMNS][4], uint32_t (&weights)[4]) {
    SPLICE_UNROLL
    for (int row = 0; row < 2; ++row) {
      SPLICE_UNROLL
      for (int column = 0; column < 2; ++column) {
        const float* score = &scores[2 * part + column][2 * row];
        const float first = power_of_two(sum(score[0], -level[row])), second = power_of_two(sum(score[1], -level[row]));
        total[part][row] = sum(total[part][row], sum(first, second));
        weights[2 * column + row] = to_bf16_pair(first, second);
      }
    }
  }

  // A row's sum: of its four threads, then of parts in ascending order.
  SPLICE_DEVICE float sum_of(int row) const {
    float sums[KEY_PARTS];
    SPLICE_UNROLL
    for (int part = 0; part < KEY_PARTS; ++part) {
      sums[part] = sum(total[part][row], from_lane_xor(total[part][row], 1));
      sums[part] = sum(sums[part], from_lane_xor(sums[part], 2));
    }
    float all = sums[0];
    SPLICE_UNROLL
    for (int part = 1; part < KEY_PARTS; ++part) all = sum(all, sums[part]);
    return all;
  }
};

}  // namespace splice::cuda
