// Quantised rows of a GGUF file into packed blocks (see quant_layout.h), or into fp32; and rows out of packed blocks.
#include "quant_packing.h"

#include <bit>
#include <cstring>

#include "quant_file.h"
#include "quant_layout.h"

namespace splice::cpu {

namespace {

constexpr int64_t PANEL = SPLICE_CPU_PANEL;

float from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // The exponent is off by 112 whether or not the half is denormal: a product by a power of two is exact.
  const float value = std::bit_cast<float>(magnitude << 13) * std::bit_cast<float>(0x77800000u);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

// What the codes of MXFP4 stand for.
constexpr int HALVES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// One lane of a block's words.
struct Lane {
  uint8_t* values;
  uint32_t word(int w) const {
    uint32_t word;
    std::memcpy(&word, values + w * PANEL * 4, sizeof word);
    return word;
  }
  void set(int w, uint32_t word) const { std::memcpy(values + w * PANEL * 4, &word, sizeof word); }
};

void store_quants(int dtype, const Lane& lane, const uint8_t (&q)[QUANT_DEPTH]) {
  if (dtype == SPLICE_CPU_Q8_0) {
    for (int g = 0; g < 8; ++g)
      lane.set(g, static_cast<uint32_t>(q[g] | q[g + 8] << 8 | q[g + 16] << 16) | static_cast<uint32_t>(q[g + 24]) << 24);
    return;
  }
  for (int w = 0; w < 4; ++w) {
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) word |= (q[4 * j + w] & 15u) << (4 * j);
    lane.set(w, word);
  }
  if (quant_bits(dtype) == 5) {
    uint32_t word = 0;
    for (int d = 0; d < QUANT_DEPTH; ++d) word |= static_cast<uint32_t>(q[d] >> 4) << d;
    lane.set(4, word);
  }
  if (quant_bits(dtype) == 6)
    for (int half = 0; half < 2; ++half) {
      uint32_t word = 0;
      for (int g = 0; g < 4; ++g)
        for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(q[4 * half + g + 8 * i] >> 4) << (8 * i + 2 * g);
      lane.set(4 + half, word);
    }
}

void load_quants(int dtype, const Lane& lane, uint8_t (&q)[QUANT_DEPTH]) {
  for (int d = 0; d < QUANT_DEPTH; ++d) {
    const int group = d % 8, byte = d / 8;
    if (dtype == SPLICE_CPU_Q8_0) {
      q[d] = static_cast<uint8_t>(lane.word(group) >> (8 * byte));
      continue;
    }
    uint32_t quant = lane.word(d % 4) >> (d / 4 * 4) & 15u;
    if (quant_bits(dtype) == 5) quant |= (lane.word(4) >> d & 1u) << 4;
    if (quant_bits(dtype) == 6) quant |= (lane.word(4 + group / 4) >> (8 * byte + 2 * (group % 4)) & 3u) << 4;
    q[d] = static_cast<uint8_t>(quant);
  }
}

// scale · quant + minimum as ggml has it: the product is exact in fp32, so there is one rounding, that of the sum; Q6_K has no
// sum and rounds the product.
void dequantize(int dtype, const FileBlock& block, float* out, int64_t step) {
  if (dtype == SPLICE_CPU_MXFP4) {
    const float unit = std::bit_cast<float>(static_cast<uint32_t>(block.scale) << 16);
    for (int d = 0; d < QUANT_DEPTH; ++d) out[d * step] = unit * static_cast<float>(HALVES[block.quants[d]]);
    return;
  }
  float scale = from_half(block.scale), minimum = from_half(block.minimum);
  if (is_k_quant(dtype) && dtype != SPLICE_CPU_Q6_K) {
    scale = scale * static_cast<float>(block.bytes[0]);
    minimum = -minimum * static_cast<float>(block.bytes[1]);
  }
  for (int d = 0; d < QUANT_DEPTH; ++d) {
    const int stored = dtype == SPLICE_CPU_Q8_0 ? static_cast<int8_t>(block.quants[d]) : block.quants[d];
    const float quant = static_cast<float>(stored - quant_offset(dtype));
    if (has_minimum(dtype))
      out[d * step] = scale * quant + minimum;
    else if (dtype == SPLICE_CPU_Q6_K)
      out[d * step] = scale * static_cast<float>(static_cast<int8_t>(block.bytes[d / 16])) * quant;
    else
      out[d * step] = scale * quant;
  }
}

// Where one column's parts of block b of a panel are.
struct Place {
  uint8_t *halves, *bytes;
  Lane lane;

  Place(uint8_t* panel, int dtype, int64_t b, int64_t column)
      : halves(panel + quant_halves_offset(dtype, b) + 2 * column),
        bytes(panel + quant_block_offset(dtype, b)),
        lane{panel + quant_block_offset(dtype, b) + quant_block_header(dtype) + 4 * column} {
    bytes += dtype == SPLICE_CPU_Q6_K ? 2 * column : column;
  }
  int64_t bytes_step(int dtype) const { return dtype == SPLICE_CPU_Q6_K ? 1 : PANEL; }

  void write(int dtype, const FileBlock& block) const {
    std::memcpy(halves, &block.scale, 2);
    if (has_minimum(dtype)) std::memcpy(halves + PANEL * 2, &block.minimum, 2);
    if (is_k_quant(dtype)) {
      bytes[0] = block.bytes[0];
      bytes[bytes_step(dtype)] = block.bytes[1];
    }
    store_quants(dtype, lane, block.quants);
  }
  FileBlock read(int dtype) const {
    FileBlock block{};
    std::memcpy(&block.scale, halves, 2);
    if (has_minimum(dtype)) std::memcpy(&block.minimum, halves + PANEL * 2, 2);
    if (is_k_quant(dtype)) {
      block.bytes[0] = bytes[0];
      block.bytes[1] = bytes[bytes_step(dtype)];
    }
    load_quants(dtype, lane, block.quants);
    return block;
  }
};

}  // namespace

void pack_quantized(void* dst, int dst_dtype, int64_t k, int64_t first, int64_t rows, const uint8_t* src, int src_dtype) {
  const int64_t blocks = k / QUANT_DEPTH, row_bytes = k / quant_depth(src_dtype) * quant_file_block_bytes(src_dtype);
  for (int64_t row = first; row < first + rows; ++row, src += row_bytes) {
    const int64_t panel = row / PANEL, column = row % PANEL;
    for (int64_t b = 0; b < blocks; ++b) {
      const FileBlock block = read_file_block(src_dtype, src, b);
      if (dst_dtype == SPLICE_CPU_F32) {
        dequantize(src_dtype, block, static_cast<float*>(dst) + (panel * k + b * QUANT_DEPTH) * PANEL + column, PANEL);
      } else {
        uint8_t* base = static_cast<uint8_t*>(dst) + panel * quant_panel_bytes(dst_dtype, k);
        Place(base, dst_dtype, b, column).write(dst_dtype, block);
      }
    }
  }
}

void quantized_row(const void* packed, int dtype, int64_t k, int64_t row, float* out) {
  auto* panel = static_cast<uint8_t*>(const_cast<void*>(packed)) + row / PANEL * quant_panel_bytes(dtype, k);
  for (int64_t b = 0; b < k / QUANT_DEPTH; ++b, out += QUANT_DEPTH)
    dequantize(dtype, Place(panel, dtype, b, row % PANEL).read(dtype), out, 1);
}

}  // namespace splice::cpu
