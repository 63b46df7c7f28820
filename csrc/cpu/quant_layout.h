// How quantised weights lie in a packed matrix: `[ceil(n/16)][k/32]` blocks of 16 columns × 32 depths.
//
// A block begins with one fp16 scale a column (Q4_1: then one fp16 minimum a column). Q8_0 follows with `[32 depths][16]` int8.
// The 4-bit types follow with `[4][16]` words of 32 bits: nibble j of word w is depth 4·j + w, so that four loads serve a
// block in ascending depth, and a masked word, converted to fp32, is the value times 16^j: the power goes into the scale.
// Bytes of a weight: 0.5625 (Q4_0), 0.625 (Q4_1), 1.0625 (Q8_0), the same as in the GGUF file they come from.
// Source of the types: ggml's block_q4_0, block_q4_1, block_q8_0.
#pragma once

#include <stdint.h>

#include "splice_cpu.h"

namespace splice::cpu {

constexpr int64_t QUANT_DEPTH = 32;

constexpr bool is_quantized(int dtype) {
  return dtype == SPLICE_CPU_Q4_0 || dtype == SPLICE_CPU_Q4_1 || dtype == SPLICE_CPU_Q8_0;
}
constexpr int64_t quant_scales_bytes(int dtype) { return SPLICE_CPU_PANEL * 2 * (dtype == SPLICE_CPU_Q4_1 ? 2 : 1); }
constexpr int64_t quant_values_bytes(int dtype) {
  return SPLICE_CPU_PANEL * QUANT_DEPTH / (dtype == SPLICE_CPU_Q8_0 ? 1 : 2);
}
constexpr int64_t quant_block_bytes(int dtype) { return quant_scales_bytes(dtype) + quant_values_bytes(dtype); }
// One row's block of 32 weights in a GGUF file: scale, (minimum,) quants.
constexpr int64_t quant_file_block_bytes(int dtype) { return quant_block_bytes(dtype) / SPLICE_CPU_PANEL; }

}  // namespace splice::cpu
