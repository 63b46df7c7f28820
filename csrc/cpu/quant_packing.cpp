// Quantised rows of a GGUF file into packed blocks (see quant_layout.h), or into fp32; and rows out of packed blocks.
#include "quant_packing.h"

#include <bit>
#include <cstring>

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

uint16_t half_at(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof half);
  return half;
}

// The 32 quants of one row's block, as stored: nibbles from 0 to 15, or signed bytes.
void file_quants(int dtype, const uint8_t* block, int32_t (&q)[QUANT_DEPTH]) {
  const uint8_t* values = block + (dtype == SPLICE_CPU_Q4_1 ? 4 : 2);
  if (dtype == SPLICE_CPU_Q8_0) {
    for (int i = 0; i < QUANT_DEPTH; ++i) q[i] = static_cast<int8_t>(values[i]);
  } else {
    for (int i = 0; i < QUANT_DEPTH / 2; ++i) {
      q[i] = values[i] & 15;
      q[i + QUANT_DEPTH / 2] = values[i] >> 4;
    }
  }
}

void packed_quants(int dtype, const uint8_t* values, int64_t lane, int32_t (&q)[QUANT_DEPTH]) {
  for (int d = 0; d < QUANT_DEPTH; ++d) {
    if (dtype == SPLICE_CPU_Q8_0) {
      q[d] = static_cast<int8_t>(values[d * PANEL + lane]);
    } else {
      uint32_t word;
      std::memcpy(&word, values + (d % 4 * PANEL + lane) * 4, sizeof word);
      q[d] = static_cast<int32_t>(word >> (d / 4 * 4) & 15u);
    }
  }
}

void store_quants(int dtype, uint8_t* values, int64_t lane, const int32_t (&q)[QUANT_DEPTH]) {
  if (dtype == SPLICE_CPU_Q8_0) {
    for (int d = 0; d < QUANT_DEPTH; ++d) values[d * PANEL + lane] = static_cast<uint8_t>(q[d]);
    return;
  }
  for (int w = 0; w < 4; ++w) {
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) word |= static_cast<uint32_t>(q[4 * j + w]) << (4 * j);
    std::memcpy(values + (w * PANEL + lane) * 4, &word, sizeof word);
  }
}

// scale · quant + minimum as ggml has it: the product is exact in fp32, so there is one rounding, that of the sum.
void dequantize(int dtype, uint16_t scale_bits, uint16_t minimum_bits, const int32_t (&q)[QUANT_DEPTH], float* out,
                int64_t step) {
  const float scale = from_half(scale_bits), minimum = from_half(minimum_bits);
  for (int d = 0; d < QUANT_DEPTH; ++d) {
    if (dtype == SPLICE_CPU_Q4_1)
      out[d * step] = scale * static_cast<float>(q[d]) + minimum;
    else
      out[d * step] = scale * static_cast<float>(dtype == SPLICE_CPU_Q4_0 ? q[d] - 8 : q[d]);
  }
}

}  // namespace

void pack_quantized(void* dst, int dst_dtype, int64_t k, int64_t first, int64_t rows, const uint8_t* src, int src_dtype) {
  const int64_t blocks = k / QUANT_DEPTH, size = quant_block_bytes(src_dtype);
  const bool has_minimum = src_dtype == SPLICE_CPU_Q4_1;
  int32_t q[QUANT_DEPTH];
  for (int64_t row = first; row < first + rows; ++row) {
    const int64_t panel = row / PANEL, lane = row % PANEL;
    for (int64_t b = 0; b < blocks; ++b, src += quant_file_block_bytes(src_dtype)) {
      file_quants(src_dtype, src, q);
      if (dst_dtype == SPLICE_CPU_F32) {
        float* out = static_cast<float*>(dst) + (panel * k + b * QUANT_DEPTH) * PANEL + lane;
        dequantize(src_dtype, half_at(src), has_minimum ? half_at(src + 2) : 0, q, out, PANEL);
      } else {
        uint8_t* block = static_cast<uint8_t*>(dst) + (panel * blocks + b) * size;
        std::memcpy(block + lane * 2, src, 2);
        if (has_minimum) std::memcpy(block + (PANEL + lane) * 2, src + 2, 2);
        store_quants(src_dtype, block + quant_scales_bytes(src_dtype), lane, q);
      }
    }
  }
}

void quantized_row(const void* packed, int dtype, int64_t k, int64_t row, float* out) {
  const int64_t blocks = k / QUANT_DEPTH, lane = row % PANEL;
  const uint8_t* block = static_cast<const uint8_t*>(packed) + row / PANEL * blocks * quant_block_bytes(dtype);
  int32_t q[QUANT_DEPTH];
  for (int64_t b = 0; b < blocks; ++b, block += quant_block_bytes(dtype), out += QUANT_DEPTH) {
    packed_quants(dtype, block + quant_scales_bytes(dtype), lane, q);
    const uint16_t minimum = dtype == SPLICE_CPU_Q4_1 ? half_at(block + (PANEL + lane) * 2) : 0;
    dequantize(dtype, half_at(block + lane * 2), minimum, q, out, 1);
  }
}

}  // namespace splice::cpu
