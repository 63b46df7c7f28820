#include "quant_file.h"

#include <cstring>

namespace splice::cpu {

namespace {

uint16_t half_at(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof half);
  return half;
}

// Sixteen bytes: low nibbles are the first sixteen quants, high ones the others.
void read_nibbles(const uint8_t* nibbles, uint8_t* quants) {
  for (int i = 0; i < 16; ++i) {
    quants[i] = nibbles[i] & 15;
    quants[i + 16] = nibbles[i] >> 4;
  }
}

// An exponent e, codes: a half is 2^(e - 128), a bf16, denormal for e < 2; 255 is no number.
FileBlock read_mxfp4(const uint8_t* p) {
  FileBlock out{};
  const uint32_t exponent = *p;
  out.scale = exponent == 255 ? 0x7fc0 : static_cast<uint16_t>(exponent > 1 ? (exponent - 1) << 7 : 32u << exponent);
  read_nibbles(p + 1, out.quants);
  return out;
}

// d, (m,) (32 fifth bits,) quants.
FileBlock read_simple(int dtype, const uint8_t* p) {
  FileBlock out{};
  out.scale = half_at(p);
  p += 2;
  if (has_minimum(dtype)) {
    out.minimum = half_at(p);
    p += 2;
  }
  if (dtype == SPLICE_CPU_Q8_0) {
    std::memcpy(out.quants, p, QUANT_DEPTH);
    return out;
  }
  uint32_t fifth = 0;
  if (quant_bits(dtype) == 5) {
    std::memcpy(&fifth, p, sizeof fifth);
    p += 4;
  }
  read_nibbles(p, out.quants);
  for (int d = 0; d < QUANT_DEPTH; ++d) out.quants[d] = static_cast<uint8_t>(out.quants[d] | (fifth >> d & 1u) << 4);
  return out;
}

// d, dmin, 12 bytes of 6-bit scales and minima, (32 bytes: bit b is the fifth bit of block b,) 4 × 32 bytes: the low nibbles
// are an even block, the high ones the odd block after it.
FileBlock read_q4_k_or_q5_k(int dtype, const uint8_t* p, int b) {
  FileBlock out{};
  out.scale = half_at(p);
  out.minimum = half_at(p + 2);
  const uint8_t* six = p + 4;
  if (b < 4) {
    out.bytes[0] = six[b] & 63;
    out.bytes[1] = six[b + 4] & 63;
  } else {
    out.bytes[0] = static_cast<uint8_t>((six[b + 4] & 15) | six[b - 4] >> 6 << 4);
    out.bytes[1] = static_cast<uint8_t>(six[b + 4] >> 4 | six[b] >> 6 << 4);
  }
  const uint8_t* fifth = p + 16;
  const uint8_t* nibbles = fifth + (dtype == SPLICE_CPU_Q5_K ? QUANT_DEPTH : 0) + b / 2 * QUANT_DEPTH;
  for (int d = 0; d < QUANT_DEPTH; ++d) {
    out.quants[d] = static_cast<uint8_t>(b % 2 ? nibbles[d] >> 4 : nibbles[d] & 15);
    if (dtype == SPLICE_CPU_Q5_K) out.quants[d] = static_cast<uint8_t>(out.quants[d] | (fifth[d] >> b & 1) << 4);
  }
  return out;
}

// 128 bytes of low nibbles, 64 of high pairs, 16 signed scales, d. Of each half of 128 weights, block j has its nibbles in bytes
// 32·(j mod 2) on, low ones for j < 2, and its pairs at bit 2·j.
FileBlock read_q6_k(const uint8_t* p, int b) {
  FileBlock out{};
  const int half = b / 4, j = b % 4;
  const uint8_t* nibbles = p + 64 * half + QUANT_DEPTH * (j % 2);
  const uint8_t* pairs = p + 128 + 32 * half;
  for (int d = 0; d < QUANT_DEPTH; ++d) {
    const int low = j < 2 ? nibbles[d] & 15 : nibbles[d] >> 4;
    out.quants[d] = static_cast<uint8_t>(low | (pairs[d] >> (2 * j) & 3) << 4);
  }
  out.bytes[0] = p[192 + 2 * b];
  out.bytes[1] = p[192 + 2 * b + 1];
  out.scale = half_at(p + 208);
  return out;
}

}  // namespace

FileBlock read_file_block(int dtype, const uint8_t* row, int64_t b) {
  if (dtype == SPLICE_CPU_MXFP4) return read_mxfp4(row + b * quant_file_block_bytes(dtype));
  if (!is_k_quant(dtype)) return read_simple(dtype, row + b * quant_file_block_bytes(dtype));
  const uint8_t* super = row + b / SUPER_BLOCKS * quant_file_block_bytes(dtype);
  const int place = static_cast<int>(b % SUPER_BLOCKS);
  return dtype == SPLICE_CPU_Q6_K ? read_q6_k(super, place) : read_q4_k_or_q5_k(dtype, super, place);
}

}  // namespace splice::cpu
