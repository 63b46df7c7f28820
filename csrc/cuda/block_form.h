// How quantised weights lie on a device, and how fragments come out of them.
//
// `[ceil(n/16)]` panels of 16 columns (rows of the weight), each `[ceil(k/128)]` slices of four blocks of 32 depths; what only fills
// up is zero. A slice is quants, then what scales them, all in chunks of 16 bytes. Column c of a panel is c mod 8 = g, low or high;
// lane = 4·g + q.
//   4 bits    `[4][32 lanes]` pairs of words, one a block: of the low column, then of the high one. A word's byte i is depth 4·q + i
//             in its low nibble and 16 + 4·q + i in its high one: so are bytes 4·q to 4·q + 3 of ggml's blocks, and packing moves
//             words and no nibbles. Where quants have no minimum they are signed, here and below.
//   5 bits    the same, then `[2][32 lanes]` words, one for two blocks: bits i of its bytes, and 4 + i for the odd block, are the fifth
//             of the fragment's word i (below).
//   6 bits    4 bits' pairs, then `[4][32 lanes]` words, one a block: bits 2·i of its bytes and the next are the highest two of the
//             fragment's word i.
//   8 bits    `[4][32 lanes]` chunks, one a block: the words of mma.m16n8k32's fragment of weights.
//   Scales    `[8 g]` chunks: a word a block, the fp16 of the low column, then that of the high one. Minima are the same again.
//   Powers    the same in bfloat16: half the power of two that multiplies a block of MXFP4, whose quants are in halves.
//   Super     `[8 g]` chunks: a word a block, bytes scale and scale, minimum and minimum of the low and the high column; then `[8 g]`
//             words: the fp16 that multiply the columns' scales, and `[8 g]` those of their minima, which are negated.
//   Halves    the same without minima: bytes are the signed scales of a block's two halves, of the low column, then of the high one.
//   Groups    one scale and one zero point for all of a slice, `[8 g]` words each: the minimum is −scale · zero.
// Lanes read side by side, and a mask and a shift make a fragment of a word: no lane needs another's.
// Bits a weight: 4.5 (Q4_0), 5 (Q4_1), 4.75 (Q4_K), 4.25 (groups), 5.5 (Q5_0, MXFP4), 6 (Q5_1), 5.75 (Q5_K), 6.625 (Q6_K), 8.5 (Q8_0).
#pragma once

#include "platform.h"
#include "splice_cuda.h"

namespace splice::cuda {

constexpr int PANEL_COLUMNS = 16, BLOCK_DEPTH = 32, SLICE_BLOCKS = 4, SLICE_DEPTH = BLOCK_DEPTH * SLICE_BLOCKS;

SPLICE_DEVICE const uint32_t* words_of(const Chunk* chunks) { return reinterpret_cast<const uint32_t*>(chunks); }
// A number for each of a word's columns: the low one, then the high one.
SPLICE_DEVICE uint16_t half_word(uint32_t word, int high) { return static_cast<uint16_t>(word >> (16 * high) & 0xffffu); }
SPLICE_DEVICE float half_of(uint32_t word, int high) { return from_half(half_word(word, high)); }
// Byte i of a word, without the conversion, which runs at a quarter of the rate: 2^23 + byte is a float32 with the byte's bits below.
SPLICE_DEVICE float byte_of(uint32_t word, int i) { return sum(float_of_bits(0x4b000000u | (word >> (8 * i) & 255u)), -8388608.0f); }

// What scales the quants of block b and column g + 8·high, from the chunks behind the quants: `scale` and, in schemes that have one,
// `lowest`, the minimum that products add. `paired`: the halves of a block have integer scales of their own, too.
struct Scales {
  static constexpr int chunks = 8;
  static constexpr bool minimum = false, paired = false;
  SPLICE_DEVICE static float scale(const Chunk* at, int b, int g, int high) { return half_of(at[g].word[b], high); }
  SPLICE_DEVICE static float lowest(const Chunk*, int, int, int) { return 0.0f; }
};

struct Powers : Scales {
  SPLICE_DEVICE static float scale(const Chunk* at, int b, int g, int high) { return from_bf16(half_word(at[g].word[b], high)); }
};

struct ScalesAndMinima : Scales {
  static constexpr int chunks = 16;
  static constexpr bool minimum = true;
  SPLICE_DEVICE static float lowest(const Chunk* at, int b, int g, int high) { return half_of(at[8 + g].word[b], high); }
};

// Both products are exact: 11 bits times 6.
struct SuperScales {
  static constexpr int chunks = 12;
  static constexpr bool minimum = true, paired = false;
  SPLICE_DEVICE static float scale(const Chunk* at, int b, int g, int high) {
    return product(half_of(words_of(at + 8)[g], high), byte_of(at[g].word[b], high));
  }
  SPLICE_DEVICE static float lowest(const Chunk* at, int b, int g, int high) { return sum(0.0f, signed_lowest(at, b, g, high)); }
  // As values have it: a zero may be negative.
  SPLICE_DEVICE static float signed_lowest(const Chunk* at, int b, int g, int high) {
    return -product(half_of(words_of(at + 10)[g], high), byte_of(at[g].word[b], 2 + high));
  }
};

struct HalfScales {
  static constexpr int chunks = 10;
  static constexpr bool minimum = false, paired = true;
  SPLICE_DEVICE static float scale(const Chunk* at, int, int g, int high) { return half_of(words_of(at + 8)[g], high); }
  SPLICE_DEVICE static float lowest(const Chunk*, int, int, int) { return 0.0f; }
  SPLICE_DEVICE static uint32_t halves(const Chunk* at, int b, int g) { return at[g].word[b]; }
};

struct Groups {
  static constexpr int chunks = 4;
  static constexpr bool minimum = true, paired = false;
  SPLICE_DEVICE static float scale(const Chunk* at, int, int g, int high) { return half_of(words_of(at)[g], high); }
  // Exact: 11 bits times 4.
  SPLICE_DEVICE static float lowest(const Chunk* at, int b, int g, int high) {
    return -product(scale(at, b, g, high), half_of(words_of(at + 2)[g], high));
  }
};

// Words of the low and the high column.
struct alignas(8) WordPair {
  uint32_t word[2];
};

template <int bits_, class Scheme_>
struct BlockForm {
  using Scheme = Scheme_;
  static constexpr int bits = bits_;
  static constexpr bool minimum = Scheme::minimum, paired = Scheme::paired;
  static constexpr bool is_signed = !minimum;
  // A fragment's bytes are so many times the quant, which is at their top.
  static constexpr int lift = is_signed && bits < 8 ? 1 << (8 - bits) : 1;
  static constexpr int quant_chunks = bits * PANEL_COLUMNS, slice_chunks = quant_chunks + Scheme::chunks;

  SPLICE_DEVICE static WordPair nibbles(const Chunk* slice, int b, int lane) {
    static_assert(bits < 8);
    return reinterpret_cast<const WordPair*>(slice)[b * WARP + lane];
  }

  // Block b as mma.m16n8k32 takes it: words of the low and the high column, of depths 4·q on, then of 16 + 4·q on.
  SPLICE_DEVICE static void fragment(const Chunk* slice, int b, int lane, uint32_t (&a)[4]) {
    if constexpr (bits == 8) {
      const Chunk words = slice[b * WARP + lane];
      SPLICE_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = words.word[i];
    } else {
      const WordPair words = nibbles(slice, b, lane);
      SPLICE_UNROLL
      for (int i = 0; i < 2; ++i) {
        constexpr uint32_t mask = 0x0f0f0f0fu * lift;
        a[i] = words.word[i] * lift & mask;
        a[i + 2] = (lift == 16 ? words.word[i] : words.word[i] / (16 / lift)) & mask;
      }
      if constexpr (bits == 5) {
        const uint32_t tops = words_of(slice + 2 * WARP)[b / 2 * WARP + lane];
        SPLICE_UNROLL
        for (int i = 0; i < 4; ++i) {
          constexpr int to = is_signed ? 7 : 4;
          const int from = b % 2 * 4 + i;
          a[i] |= (from > to ? tops >> (from - to) : tops << (to - from)) & 0x01010101u << to;
        }
      }
      if constexpr (bits == 6) {
        const uint32_t tops = words_of(slice + 2 * WARP)[b * WARP + lane];
        SPLICE_UNROLL
        for (int i = 0; i < 4; ++i) a[i] |= tops << (6 - 2 * i) & 0xc0c0c0c0u;
      }
    }
  }

  // The signed scales of the halves of block b, of columns g and g + 8.
  SPLICE_DEVICE static uint32_t half_scales(const Chunk* slice, int b, int g) { return Scheme::halves(slice + quant_chunks, b, g); }
  SPLICE_DEVICE static float scale(const Chunk* slice, int b, int g, int high) { return Scheme::scale(slice + quant_chunks, b, g, high); }
  SPLICE_DEVICE static float lowest(const Chunk* slice, int b, int g, int high) { return Scheme::lowest(slice + quant_chunks, b, g, high); }
  // What values add.
  SPLICE_DEVICE static float value_lowest(const Chunk* slice, int b, int g, int high) {
    if constexpr (Scheme::chunks == SuperScales::chunks)
      return Scheme::signed_lowest(slice + quant_chunks, b, g, high);
    else
      return lowest(slice, b, g, high);
  }
};

SPLICE_BOTH int64_t panels_of(int64_t n) { return (n + PANEL_COLUMNS - 1) / PANEL_COLUMNS; }
SPLICE_BOTH int64_t slices_of(int64_t k) { return (k + SLICE_DEPTH - 1) / SLICE_DEPTH; }

// Calls body(BlockForm) for a form known only at run time; SPLICE_CUDA_UNSUPPORTED if it is not among those of four bits, of five and
// six, or of the other types of files.
template <class Body>
int with_nibbles(int form, Body&& body) {
  switch (form) {
    case SPLICE_CUDA_BLOCK_4: return body(BlockForm<4, Scales>{});
    case SPLICE_CUDA_BLOCK_4_MINIMUM: return body(BlockForm<4, ScalesAndMinima>{});
    case SPLICE_CUDA_BLOCK_4_SUPER: return body(BlockForm<4, SuperScales>{});
    case SPLICE_CUDA_BLOCK_4_GROUPS: return body(BlockForm<4, Groups>{});
    default: return SPLICE_CUDA_UNSUPPORTED;
  }
}
template <class Body>
int with_wide_form(int form, Body&& body) {
  switch (form) {
    case SPLICE_CUDA_BLOCK_5: return body(BlockForm<5, Scales>{});
    case SPLICE_CUDA_BLOCK_5_POWERS: return body(BlockForm<5, Powers>{});
    case SPLICE_CUDA_BLOCK_5_MINIMUM: return body(BlockForm<5, ScalesAndMinima>{});
    case SPLICE_CUDA_BLOCK_5_SUPER: return body(BlockForm<5, SuperScales>{});
    case SPLICE_CUDA_BLOCK_6_HALVES: return body(BlockForm<6, HalfScales>{});
    default: return SPLICE_CUDA_UNSUPPORTED;
  }
}
template <class Body>
int with_common_form(int form, Body&& body) {
  switch (form) {
    case SPLICE_CUDA_BLOCK_4: return body(BlockForm<4, Scales>{});
    case SPLICE_CUDA_BLOCK_4_MINIMUM: return body(BlockForm<4, ScalesAndMinima>{});
    case SPLICE_CUDA_BLOCK_4_SUPER: return body(BlockForm<4, SuperScales>{});
    case SPLICE_CUDA_BLOCK_8: return body(BlockForm<8, Scales>{});
    default: return SPLICE_CUDA_UNSUPPORTED;
  }
}

}  // namespace splice::cuda
