// Blocks of quantised weights as a GGUF file has them. Source: ggml's ggml-common.h and its dequantize_row functions.
#pragma once

#include <stdint.h>

#include "quant_layout.h"

namespace splice::cpu {

// 32 weights of one row: weight d is scale·bytes[0]·quants[d] + minimum and the like, see `dequantize` in quant_packing.cpp.
struct FileBlock {
  uint8_t quants[QUANT_DEPTH];  // as stored, before quant_offset is subtracted; Q8_0: signed
  uint16_t scale, minimum;      // fp16
  uint8_t bytes[2];             // K-quants: scale and minimum of the block, or (Q6_K) the signed scales of its two halves
};

// Block b (of 32 weights) of a row.
FileBlock read_file_block(int dtype, const uint8_t* row, int64_t b);

}  // namespace splice::cpu
