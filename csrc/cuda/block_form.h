// How quantised weights lie on a device, and how fragments come out of them.
//
// `[ceil(n/16)]` panels of 16 columns (rows of the weight), each `[ceil(k/128)]` slices of four blocks of 32 depths; what only fills
// up is zero. A slice is quants, then what scales them, all in chunks of 16 bytes. Column c of a panel is c mod 8 = g, low or high;
// lane = 4·g + q.
//   4 bits    `[2][32 lanes]` chunks: words (low column, high column) of an even block, then of the odd block after it. A word's
//             byte i is depth 4·q + i in its low nibble and 16 + 4·q + i in its high one: so are bytes 4·q to 4·q + 3 of ggml's
//             blocks, and packing moves words and no nibbles. Where quants have no minimum they are signed.
//   8 bits    `[4][32 lanes]` chunks, one a block: the words of mma.m16n8k32's fragment of weights, signed.
//   Scales    `[8 g]` chunks: a word a block, the fp16 of the low column, then that of the high one. Minima are the same again.
//   Groups    one scale and one zero point for all of a slice, `[8 g]` words each: the minimum is −scale · zero.
// A warp reads 16 bytes a lane side by side, and a mask and a shift make a fragment of a word: no lane needs another's.
// Bits a weight: 4.5 (Q4_0), 5 (Q4_1), 4.25 (groups), 8.5 (Q8_0, Q5_0).
#pragma once

#include "platform.h"
#include "splice_cuda.h"

namespace splice::cuda {

constexpr int PANEL_COLUMNS = 16, BLOCK_DEPTH = 32, SLICE_BLOCKS = 4, SLICE_DEPTH = BLOCK_DEPTH * SLICE_BLOCKS;

// Of columns g and g + 8 of a panel.
struct ColumnPair {
  float low, high;
};

SPLICE_DEVICE ColumnPair halves_of(uint32_t word) {
  return {from_half(static_cast<uint16_t>(word & 0xffff)), from_half(static_cast<uint16_t>(word >> 16))};
}

// What scales quants: `scales` and, where there is one, `minima` of block b and columns g, from the chunks behind the quants.
struct Scales {
  static constexpr int chunks = 8;
  static constexpr bool minimum = false;
  SPLICE_DEVICE static ColumnPair scales(const Chunk* at, int b, int g) { return halves_of(at[g].word[b]); }
  SPLICE_DEVICE static ColumnPair minima(const Chunk*, int, int) { return {}; }
};

struct ScalesAndMinima {
  static constexpr int chunks = 16;
  static constexpr bool minimum = true;
  SPLICE_DEVICE static ColumnPair scales(const Chunk* at, int b, int g) { return halves_of(at[g].word[b]); }
  SPLICE_DEVICE static ColumnPair minima(const Chunk* at, int b, int g) { return halves_of(at[8 + g].word[b]); }
};

struct Groups {
  static constexpr int chunks = 4;
  static constexpr bool minimum = true;
  SPLICE_DEVICE static ColumnPair scales(const Chunk* at, int, int g) { return halves_of(at->word[g]); }
  // Exact: 11 bits times 4.
  SPLICE_DEVICE static ColumnPair minima(const Chunk* at, int b, int g) {
    const ColumnPair scale = scales(at, b, g), zero = halves_of((at + 2)->word[g]);
    return {-product(scale.low, zero.low), -product(scale.high, zero.high)};
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
  static constexpr bool minimum = Scheme::minimum;
  static constexpr bool signed_nibbles = bits == 4 && !minimum;
  static constexpr int quant_chunks = bits * PANEL_COLUMNS, slice_chunks = quant_chunks + Scheme::chunks;

  SPLICE_DEVICE static WordPair nibbles(const Chunk* slice, int b, int lane) {
    static_assert(bits == 4);
    return reinterpret_cast<const WordPair*>(slice + b / 2 * WARP + lane)[b % 2];
  }

  // Block b as mma.m16n8k32 takes it. Signed nibbles come out times 16, at the top of their bytes.
  SPLICE_DEVICE static void fragment(const Chunk* slice, int b, int lane, uint32_t (&a)[4]) {
    if constexpr (bits == 8) {
      const Chunk words = slice[b * WARP + lane];
      SPLICE_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = words.word[i];
    } else {
      const WordPair words = nibbles(slice, b, lane);
      SPLICE_UNROLL
      for (int i = 0; i < 2; ++i) {
        a[i] = signed_nibbles ? words.word[i] << 4 & 0xf0f0f0f0u : words.word[i] & 0x0f0f0f0fu;
        a[i + 2] = signed_nibbles ? words.word[i] & 0xf0f0f0f0u : words.word[i] >> 4 & 0x0f0f0f0fu;
      }
    }
  }

  SPLICE_DEVICE static ColumnPair scales(const Chunk* slice, int b, int g) { return Scheme::scales(slice + quant_chunks, b, g); }
  SPLICE_DEVICE static ColumnPair minima(const Chunk* slice, int b, int g) { return Scheme::minima(slice + quant_chunks, b, g); }
};

SPLICE_BOTH int64_t panels_of(int64_t n) { return (n + PANEL_COLUMNS - 1) / PANEL_COLUMNS; }
SPLICE_BOTH int64_t slices_of(int64_t k) { return (k + SLICE_DEPTH - 1) / SLICE_DEPTH; }

// Calls body(BlockForm) for a form known only at run time; SPLICE_CUDA_UNSUPPORTED if there is none such.
template <class Body>
int with_nibbles(int form, Body&& body) {
  switch (form) {
    case SPLICE_CUDA_BLOCK_4: return body(BlockForm<4, Scales>{});
    case SPLICE_CUDA_BLOCK_4_MINIMUM: return body(BlockForm<4, ScalesAndMinima>{});
    case SPLICE_CUDA_BLOCK_4_GROUPS: return body(BlockForm<4, Groups>{});
    default: return SPLICE_CUDA_UNSUPPORTED;
  }
}
template <class Body>
int with_form(int form, Body&& body) {
  if (form == SPLICE_CUDA_BLOCK_8) return body(BlockForm<8, Scales>{});
  return with_nibbles(form, static_cast<Body&&>(body));
}

}  // namespace splice::cuda
