// A step of products of bfloat16 rows with weights in e4m3 codes, in shared memory: where its chunks stand, and the products.
#pragma once

#include "e4m3.h"
#include "rows.h"

namespace splice::cuda {

constexpr int STEP = 128, FRAGMENT_ROWS = 16, FRAGMENT_COLUMNS = 8;  // elements of k; of fragments
constexpr int X_CHUNKS = STEP / CHUNK_ELEMENTS, W_CHUNKS = STEP / CHUNK_BYTES;  // of a row and a step
constexpr int HALVES = 2, PRODUCTS = 4;                                         // of a step; of a half of one

// Chunks in shared memory: eight lanes that read at once are two rows and every second of eight chunks of x, every one of four of W.
SPLICE_BOTH int x_place(int row, int chunk) { return row * X_CHUNKS + (chunk ^ (row & 1)); }
SPLICE_BOTH int w_place(int row, int chunk) { return row * W_CHUNKS + (chunk ^ (row & 1) << 2); }

// sums += x·Wᵀ of one stage, in codes. T has `row_fragments` and `column_fragments` of a warp and a `Stage` of chunks `x` and `w`. Four
// products of fragments for each half of the step: product s takes elements 16·q + 4·s + 0…3, q = 0…3.
template <class T>
SPLICE_DEVICE void multiply_stage(const typename T::Stage& stage, int row, int column, float (&sums)[T::row_fragments][T::column_fragments][4]) {
  const int lane = thread_index() % WARP, group = lane / 4, quad = lane % 4;
  SPLICE_UNROLL
  for (int half = 0; half < HALVES; ++half) {
    Chunk x[T::row_fragments][2][2];  // rows group and group + 8, elements 0…7 and 8…15
    SPLICE_UNROLL
    for (int down = 0; down < T::row_fragments; ++down) {
      SPLICE_UNROLL
      for (int i = 0; i < 4; ++i)
        x[down][i / 2][i % 2] = stage.x[x_place(row + down * FRAGMENT_ROWS + group + i / 2 * 8, half * 8 + 2 * quad + i % 2)];
    }
    SPLICE_UNROLL
    for (int across = 0; across < T::column_fragments; ++across) {
      const Chunk codes = stage.w[w_place(column + across * FRAGMENT_COLUMNS + group, half * 4 + quad)];
      uint32_t w[PRODUCTS][2], nans = 0;
      SPLICE_UNROLL
      for (int s = 0; s < PRODUCTS; ++s) {
        e4m3_numbers_to_bf16(codes.word[s], w[s]);
        nans |= e4m3_nans(codes.word[s]);
      }
      if (nans) {  // looked for once in 16 codes
        SPLICE_UNROLL
        for (int s = 0; s < PRODUCTS; ++s) mark_nans(codes.word[s], w[s]);
      }
      SPLICE_UNROLL
      for (int s = 0; s < PRODUCTS; ++s) {
        SPLICE_UNROLL
        for (int down = 0; down < T::row_fragments; ++down) {
          const Chunk &above = x[down][0][s / 2], &below = x[down][1][s / 2];
          const int word = s % 2 * 2;
          const uint32_t a[4] = {above.word[word], below.word[word], above.word[word + 1], below.word[word + 1]};
          multiply_fragments(sums[down][across], a, w[s][0], w[s][1]);
        }
      }
    }
  }
}

}  // namespace splice::cuda
