// How quantised weights lie in a packed matrix: `[ceil(n/16)]` panels of 16 columns, each `[k/32]` blocks of 32 depths.
//
// A block of a simple type begins with one fp16 scale a column (MXFP4: bf16, a power of two) and, where the type has one, an fp16
// minimum a column. K-quants keep those once per 256 depths, before eight blocks, each of which begins with its two bytes a
// column: scale and minimum (Q4_K, Q5_K: the file's 6 bits widened to 8), or the signed scales of its two halves (Q6_K). Values
// follow:
//   4 bits   `[4][16]` words of 32 bits: nibble j of word w is depth 4·j + w;
//   5 bits   the same, then `[16]` words: bit d is the fifth of depth d;
//   6 bits   the same, then `[2][16]` words of two bits each;
//   8 bits   `[8][16]` words.
// Group g of 8 is the four depths g, g + 8, g + 16, g + 24, one a byte: masking the low nibbles of word w gives group w, the high
// ones group 4 + w. The fifth bits of group g are bits g of the four bytes of their word, the fifth and sixth bits 2·(g mod 4) and
// the next of the four bytes of word g / 4, and 8-bit words are the groups themselves. So integer products take
// 4-byte groups with one or two operations, and fp32 ones depths in ascending order.
// The 4 bits of MXFP4 are a number's code: 0, 1, 2, 3, 4, 6, 8 or 12 halves and a sign (OCP Microscaling Formats, version 1.0). Its
// scale is that of a half, and products take the quant 12 + halves, from 0 to 24.
// Bits of a weight: 4.5 (Q4_0, MXFP4), 5 (Q4_1), 5.5, 6, 8.5 (Q8_0), 4.625 (Q4_K), 5.625 (Q5_K), 6.5625 (Q6_K): those of the GGUF
// file they come from, and 0.125 more for Q4_K and Q5_K, 0.25 for MXFP4. Source of the types: ggml's block_q4_0 ... block_q6_K,
// block_mxfp4.
#pragma once

#include <stdint.h>

#include "shared.h"
#include "splice_cpu.h"

namespace splice::cpu {

constexpr int64_t QUANT_DEPTH = 32;
constexpr int64_t SUPER_BLOCKS = 8;  // blocks under one header of a K-quant

SPLICE_SHARED constexpr bool is_quantized(int dtype) { return dtype >= SPLICE_CPU_Q4_0 && dtype <= SPLICE_CPU_MXFP4; }
SPLICE_SHARED constexpr bool is_k_quant(int dtype) {
  return dtype == SPLICE_CPU_Q4_K || dtype == SPLICE_CPU_Q5_K || dtype == SPLICE_CPU_Q6_K;
}
SPLICE_SHARED constexpr int quant_bits(int dtype) {
  switch (dtype) {
    case SPLICE_CPU_Q8_0: return 8;
    case SPLICE_CPU_Q6_K: return 6;
    case SPLICE_CPU_Q5_0:
    case SPLICE_CPU_Q5_1:
    case SPLICE_CPU_Q5_K: return 5;
    default: return 4;
  }
}
// Of the quants that products take.
SPLICE_SHARED constexpr int product_bits(int dtype) { return dtype == SPLICE_CPU_MXFP4 ? 5 : quant_bits(dtype); }
// What is subtracted from such a quant.
SPLICE_SHARED constexpr int quant_offset(int dtype) {
  switch (dtype) {
    case SPLICE_CPU_Q4_0: return 8;
    case SPLICE_CPU_Q5_0: return 16;
    case SPLICE_CPU_Q6_K: return 32;
    case SPLICE_CPU_MXFP4: return 12;
    default: return 0;
  }
}
SPLICE_SHARED constexpr bool has_minimum(int dtype) {
  return dtype == SPLICE_CPU_Q4_1 || dtype == SPLICE_CPU_Q5_1 || dtype == SPLICE_CPU_Q4_K || dtype == SPLICE_CPU_Q5_K;
}
// k must be a multiple of this.
SPLICE_SHARED constexpr int64_t quant_depth(int dtype) {
  return is_k_quant(dtype) ? SUPER_BLOCKS * QUANT_DEPTH : QUANT_DEPTH;
}

SPLICE_SHARED constexpr int64_t quant_halves_bytes(int dtype) { return SPLICE_CPU_PANEL * (has_minimum(dtype) ? 4 : 2); }
SPLICE_SHARED constexpr int64_t quant_super_header(int dtype) { return is_k_quant(dtype) ? quant_halves_bytes(dtype) : 0; }
// From a block's first byte to its values.
SPLICE_SHARED constexpr int64_t quant_block_header(int dtype) {
  return is_k_quant(dtype) ? SPLICE_CPU_PANEL * 2 : quant_halves_bytes(dtype);
}
SPLICE_SHARED constexpr int64_t quant_values_bytes(int dtype) { return SPLICE_CPU_PANEL * QUANT_DEPTH * quant_bits(dtype) / 8; }
SPLICE_SHARED constexpr int64_t quant_block_bytes(int dtype) { return quant_block_header(dtype) + quant_values_bytes(dtype); }

// Within a panel: where block b begins, where the halves that scale it lie, and all of it.
SPLICE_SHARED constexpr int64_t quant_block_offset(int dtype, int64_t b) {
  return b * quant_block_bytes(dtype) + (is_k_quant(dtype) ? (b / SUPER_BLOCKS + 1) * quant_super_header(dtype) : 0);
}
SPLICE_SHARED constexpr int64_t quant_halves_offset(int dtype, int64_t b) {
  if (!is_k_quant(dtype)) return quant_block_offset(dtype, b);
  return b / SUPER_BLOCKS * (SUPER_BLOCKS * quant_block_bytes(dtype) + quant_super_header(dtype));
}
SPLICE_SHARED constexpr int64_t quant_panel_bytes(int dtype, int64_t k) {
  return k / QUANT_DEPTH * quant_block_bytes(dtype) + k / quant_depth(dtype) * quant_super_header(dtype);
}

// One row's block of quant_depth(dtype) weights in a GGUF file.
SPLICE_SHARED constexpr int64_t quant_file_block_bytes(int dtype) {
  switch (dtype) {
    case SPLICE_CPU_Q4_K: return 144;
    case SPLICE_CPU_Q5_K: return 176;
    case SPLICE_CPU_Q6_K: return 210;
    case SPLICE_CPU_MXFP4: return 17;  // an exponent of eight bits
    default: return quant_block_bytes(dtype) / SPLICE_CPU_PANEL;
  }
}

}  // namespace splice::cpu
