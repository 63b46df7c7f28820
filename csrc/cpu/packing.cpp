// The packed form of a weight matrix: see splice_cpu.h. Runs once, at load.
#include <bit>
#include <cstring>

#include "quant_layout.h"
#include "quant_packing.h"
#include "splice_cpu.h"

namespace {

constexpr int64_t PANEL = SPLICE_CPU_PANEL;

uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
float from_bf16(uint16_t value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

uint16_t as_bf16(uint16_t value) { return value; }
uint16_t as_bf16(float value) { return to_bf16(value); }
float as_f32(uint16_t value) { return from_bf16(value); }
float as_f32(float value) { return value; }

int64_t pairs(int64_t k) { return (k + 1) / 2; }

template <class Source>
void pack_rows(void* dst, int dtype, int64_t k, int64_t first, int64_t rows, const Source* src) {
  for (int64_t row = 0; row < rows; ++row, src += k) {
    const int64_t column = first + row, panel = column / PANEL, lane = column % PANEL;
    if (dtype == SPLICE_CPU_F32) {
      float* out = static_cast<float*>(dst) + panel * k * PANEL + lane;
      for (int64_t i = 0; i < k; ++i) out[i * PANEL] = as_f32(src[i]);
    } else {
      uint16_t* out = static_cast<uint16_t*>(dst) + (panel * pairs(k) * PANEL + lane) * 2;
      for (int64_t i = 0; i < k; ++i) out[i / 2 * PANEL * 2 + i % 2] = as_bf16(src[i]);
    }
  }
}

}  // namespace

size_t splice_cpu_packed_bytes(int64_t n, int64_t k, int dtype) {
  const int64_t panels = (n + PANEL - 1) / PANEL;
  if (splice::cpu::is_quantized(dtype))
    return static_cast<size_t>(panels * splice::cpu::quant_panel_bytes(dtype, k));
  return static_cast<size_t>(panels * PANEL * 4 * (dtype == SPLICE_CPU_F32 ? k : pairs(k)));
}

void splice_cpu_pack(void* dst, int dst_dtype, int64_t k, int64_t first, int64_t rows, const void* src, int src_dtype) {
  if (splice::cpu::is_quantized(src_dtype))
    splice::cpu::pack_quantized(dst, dst_dtype, k, first, rows, static_cast<const uint8_t*>(src), src_dtype);
  else if (src_dtype == SPLICE_CPU_F32)
    pack_rows(dst, dst_dtype, k, first, rows, static_cast<const float*>(src));
  else
    pack_rows(dst, dst_dtype, k, first, rows, static_cast<const uint16_t*>(src));
}

void splice_cpu_packed_rows(const void* packed, int dtype, int64_t k, const int64_t* ids, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i, out += k) {
    const int64_t panel = ids[i] / PANEL, lane = ids[i] % PANEL;
    if (splice::cpu::is_quantized(dtype)) {
      splice::cpu::quantized_row(packed, dtype, k, ids[i], out);
    } else if (dtype == SPLICE_CPU_F32) {
      const float* src = static_cast<const float*>(packed) + panel * k * PANEL + lane;
      for (int64_t j = 0; j < k; ++j) out[j] = src[j * PANEL];
    } else {
      const uint16_t* src = static_cast<const uint16_t*>(packed) + (panel * pairs(k) * PANEL + lane) * 2;
      for (int64_t j = 0; j < k; ++j) out[j] = from_bf16(src[j / 2 * PANEL * 2 + j % 2]);
    }
  }
}
