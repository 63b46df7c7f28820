// Rows of activations as tiles of products with quantised weights take them: int8 blocks with scales, or bfloat16.
//
// What a kind of rows says: how a slice of 128 depths of a row lies in shared memory, `chunks` of `depths` each; what a thread holds of a
// block of 32 depths (`load`: of `fragments` times 8 rows; `weights`: of a panel); the dot products of the two; and an output's step.
#pragma once

#include "block_form.h"

namespace splice::cuda {

using BlockArgs = splice_cuda_block_gemm_args;
constexpr int FRAGMENT_ROWS = 8;

// Sums of integers begin as the bits of 1.5·2^23: they end as those of 1.5·2^23 + sum, a float32 with no rounding while |sum| < 2^22.
// Here it is at most 32·128·127 = 16·32·8·127 = 8·32·16·127, and a conversion that runs at a quarter of the rate is saved.
constexpr uint32_t SUM_START = 0x4b400000u;
constexpr float SUM_BIAS = 12582912.0f;

template <class Form>
struct Int8Rows {
  static constexpr int chunks = SLICE_DEPTH / CHUNK_BYTES, depths = CHUNK_BYTES, words = 2, weight_words = Form::paired ? 5 : 4;
  static constexpr int planes = Form::minimum ? 2 : 1;  // scales, then scaled sums: four of a slice in a chunk

  // The eight rows that a matrix load takes lie in eight groups of banks.
  SPLICE_BOTH static int place(int row, int chunk) { return row * chunks + (chunk ^ (row & 7)); }

  SPLICE_DEVICE static const Chunk* row_of(const BlockArgs& args, int64_t row) {
    return reinterpret_cast<const Chunk*>(static_cast<const int8_t*>(args.x) + row * args.x_stride);
  }
  SPLICE_DEVICE static void start_scales(const BlockArgs& args, int plane, int64_t row, int slice, Chunk* to) {
    const int64_t slices = slices_of(args.k);
    const float* from = args.scales + (plane * args.m + row) * slices * SLICE_BLOCKS + int64_t{slice} * SLICE_BLOCKS;
    start_copy(to, from, row < args.m && slice < slices);
  }

  template <int fragments>
  SPLICE_DEVICE static void load(const Chunk* rows, int b, uint32_t (&x)[fragments][words]) {
    const int lane = thread_index() % WARP, matrix = lane / 8;
    SPLICE_UNROLL
    for (int f = 0; f < fragments; f += 2) {
      uint32_t two[4];  // with one fragment, twice that
      load_matrices(two, rows + place((f + matrix / 2 % fragments) * FRAGMENT_ROWS + lane % 8, b * 2 + matrix % 2));
      SPLICE_UNROLL
      for (int i = 0; i < 2 && f + i < fragments; ++i) {
        x[f + i][0] = two[2 * i];
        x[f + i][1] = two[2 * i + 1];
      }
    }
  }
  SPLICE_DEVICE static void weights(const Chunk* slice, int b, uint32_t (&a)[weight_words]) {
    const int lane = thread_index() % WARP;
    uint32_t quants[4];
    Form::fragment(slice, b, lane, quants);
    SPLICE_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = quants[i];
    if constexpr (Form::paired) a[4] = Form::half_scales(slice, b, lane / 4);
  }
  SPLICE_DEVICE static void dots(const uint32_t (&a)[weight_words], const uint32_t (&x)[words], float (&out)[4]) {
    if constexpr (Form::paired) {
      paired_dots(a, x, out);
    } else {
      uint32_t sums[4];
      const uint32_t quants[4] = {a[0], a[1], a[2], a[3]};
      multiply_fragments_int8(sums, quants, x[0], x[1], SUM_START);
      SPLICE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float biased = float_of_bits(sums[i]);
        out[i] = Form::lift > 1 ? fused(biased, 1.0f / Form::lift, -SUM_BIAS / Form::lift) : sum(biased, -SUM_BIAS);
      }
    }
  }
  // Of halves of 16 depths, each times its scale: below 2^24, so a conversion is exact, where 2^22 is too little.
  SPLICE_DEVICE static void paired_dots(const uint32_t (&a)[weight_words], const uint32_t (&x)[words], float (&out)[4]) {
    uint32_t first[4], second[4];
    const uint32_t low[4] = {a[0], a[1], 0, 0}, high[4] = {0, 0, a[2], a[3]};
    multiply_fragments_int8(first, low, x[0], x[1], 0);
    multiply_fragments_int8(second, high, x[0], x[1], 0);
    SPLICE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t scales = a[Form::paired ? 4 : 0] >> (i / 2 * 16);
      const int both = static_cast<int>(first[i]) * static_cast<int8_t>(scales & 255u) +
                       static_cast<int>(second[i]) * static_cast<int8_t>(scales >> 8 & 255u);
      out[i] = static_cast<float>(both / Form::lift);
    }
  }
  SPLICE_DEVICE static float next(float acc, float dot, float weight_scale, float row_scale, float minimum, float row_sum) {
    acc = fused(product(weight_scale, row_scale), dot, acc);
    return Form::minimum ? fused(minimum, row_sum, acc) : acc;
  }
  // Scales of block b and a thread's rows 2·q and the next of each fragment; `at`: the planes' first rows.
  template <int fragments>
  SPLICE_DEVICE static void row_values(const Chunk* (&at)[2], int b, const uint32_t (&)[fragments][words], float (&scales)[fragments][2],
                                       float (&sums)[fragments][2]) {
    SPLICE_UNROLL
    for (int f = 0; f < fragments; ++f) {
      SPLICE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int row = f * FRAGMENT_ROWS + thread_index() % 4 * 2 + i;
        scales[f][i] = float_of_bits(at[0][row].word[b]);
        sums[f][i] = Form::minimum ? float_of_bits(at[1][row].word[b]) : 0.0f;
      }
    }
  }
};

// Quants are exact in bfloat16, and scales multiply float32 sums: a weight is never rounded. A block is two steps of mma.m16n8k16.
// Which depths of a step stand where is free as long as both sides agree: in step h, k 2·q, 2·q + 1, 2·q + 8, 2·q + 9 of the
// instruction are depths 16·h + 4·q + 0, 2, 1, 3, so that a mask takes pairs out of a word of nibbles.
template <class Form>
struct Bf16Rows {
  static constexpr int chunks = SLICE_DEPTH * 2 / CHUNK_BYTES, depths = CHUNK_BYTES / 2, words = 4, weight_words = 8;
  static constexpr int planes = Form::minimum ? 1 : 0;  // sums, by the tile itself

  // Of the eight rows that read two neighbouring chunks each at a time, four lie in four groups of banks.
  SPLICE_BOTH static int place(int row, int chunk) { return row * chunks + (chunk ^ (row & 7) * 2); }

  SPLICE_DEVICE static const Chunk* row_of(const BlockArgs& args, int64_t row) {
    return reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.x) + row * args.x_stride);
  }
  SPLICE_DEVICE static void start_scales(const BlockArgs&, int, int64_t, int, Chunk*) {}

  template <int fragments>
  SPLICE_DEVICE static void load(const Chunk* rows, int b, uint32_t (&x)[fragments][words]) {
    const int g = thread_index() % WARP / 4, q = thread_index() % 4;
    SPLICE_UNROLL
    for (int f = 0; f < fragments; ++f) {
      SPLICE_UNROLL
      for (int h = 0; h < 2; ++h) {
        const Chunk* chunk = rows + place(f * FRAGMENT_ROWS + g, b * 4 + h * 2 + q / 2);
        const WordPair four = reinterpret_cast<const WordPair*>(chunk)[q % 2];
        x[f][2 * h] = (four.word[0] & 0xffffu) | four.word[1] << 16;
        x[f][2 * h + 1] = four.word[0] >> 16 | (four.word[1] & 0xffff0000u);
      }
    }
  }
  // Under the exponent of 128 a nibble is 128 + quant; what is subtracted leaves the quant, exactly.
  SPLICE_DEVICE static uint32_t pair_of(uint32_t word) {
    constexpr uint32_t exponent = 0x43004300u, sign = Form::is_signed ? 0x00080008u : 0u;
    return bf16_pair_difference(masked_xor(word, 0x000f000fu, exponent | sign), exponent | sign);
  }
  SPLICE_DEVICE static void weights(const Chunk* slice, int b, uint32_t (&a)[weight_words]) {
    const WordPair pair = Form::nibbles(slice, b, thread_index() % WARP);
    SPLICE_UNROLL
    for (int h = 0; h < 2; ++h) {
      SPLICE_UNROLL
      for (int i = 0; i < 4; ++i) a[4 * h + i] = pair_of(pair.word[i % 2] >> (4 * h + i / 2 * 8));
    }
  }
  SPLICE_DEVICE static void dots(const uint32_t (&a)[weight_words], const uint32_t (&x)[words], float (&out)[4]) {
    const uint32_t first[4] = {a[0], a[1], a[2], a[3]}, second[4] = {a[4], a[5], a[6], a[7]};
    SPLICE_UNROLL
    for (int i = 0; i < 4; ++i) out[i] = 0.0f;
    multiply_fragments(out, first, x[0], x[1]);
    multiply_fragments(out, second, x[2], x[3]);
  }
  SPLICE_DEVICE static float next(float acc, float dot, float weight_scale, float, float minimum, float row_sum) {
    acc = fused(weight_scale, dot, acc);
    return Form::minimum ? fused(minimum, row_sum, acc) : acc;
  }
  // Sums of a block of rows are its products with ones.
  template <int fragments>
  SPLICE_DEVICE static void row_values(const Chunk* (&)[2], int, const uint32_t (&x)[fragments][words], float (&scales)[fragments][2],
                                       float (&sums)[fragments][2]) {
    constexpr uint32_t one = 0x3f803f80u;
    const uint32_t ones[weight_words] = {one, one, one, one, one, one, one, one};
    SPLICE_UNROLL
    for (int f = 0; f < fragments; ++f) {
      float total[4] = {};
      if constexpr (Form::minimum) dots(ones, x[f], total);
      SPLICE_UNROLL
      for (int i = 0; i < 2; ++i) {
        scales[f][i] = 1.0f;
        sums[f][i] = total[i];
      }
    }
  }
};

}  // namespace splice::cuda
