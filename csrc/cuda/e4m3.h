// e4m3 (OCP 8-bit floating point specification, "E4M3"; torch.float8_e4m3fn): sign, four bits of exponent with bias 7, three of mantissa;
// no infinities, 0x7f and 0xff are NaN, 448 is the largest.
#pragma once

#include <string.h>

#include "platform.h"

namespace splice::cuda {

constexpr float E4M3_LARGEST = 448.0f;
constexpr uint8_t E4M3_NAN = 0x7f;

SPLICE_BOTH uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
SPLICE_BOTH float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Rounds to nearest even; what is larger than 448, an infinity too, becomes 448. NaN stays one, without its sign.
SPLICE_BOTH uint8_t portable_to_e4m3(float x) {
  const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff, sign = bits >> 24 & 0x80;
  if (magnitude > 0x7f800000) return E4M3_NAN;
  if (magnitude >= bits_of(E4M3_LARGEST)) return static_cast<uint8_t>(sign | 0x7e);
  uint32_t code;
  if (magnitude >= bits_of(0x1p-6f)) {
    code = ((magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20) - (120 << 3);  // a float32 counts exponents from 127, a code from 7
  } else {
    // Subnormals are multiples of 2^-9. Added to 2^14, whose last place that is, a float32 is rounded to one.
    code = bits_of(float_of(magnitude) + 0x1p14f) - bits_of(0x1p14f);
  }
  return static_cast<uint8_t>(sign | code);
}

SPLICE_BOTH float portable_from_e4m3(uint8_t code) {
  const uint32_t magnitude = code & 0x7f, sign = static_cast<uint32_t>(code & 0x80) << 24;
  if (magnitude == 0x7f) return float_of(0x7fc00000 | sign);
  // As bits of a float32 a code is 2^-120 of its value, subnormal where it is.
  return float_of(bits_of(float_of(magnitude << 20) * 0x1p120f) | sign);
}

// Two codes, the first in the low byte.
SPLICE_DEVICE uint32_t to_e4m3_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return portable_to_e4m3(low) | static_cast<uint32_t>(portable_to_e4m3(high)) << 8;
#endif
}

// Four codes as bfloat16, which holds each exactly: the first and second in pairs[0], the others in pairs[1].
SPLICE_DEVICE void e4m3_to_bf16(uint32_t codes, uint32_t (&pairs)[2]) {
  if ((((codes & 0x7f7f7f7f) + 0x01010101) & 0x80808080) == 0) {
    SPLICE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t low = codes >> (16 * i) & 0xff, high = codes >> (16 * i + 8) & 0xff;
      // Shifted by four a code is a bfloat16 of 2^-120 of its value, and by twenty the float32 of those bits.
      pairs[i] = to_bf16_pair(float_of((low & 0x80) << 24 | (low & 0x7f) << 20) * 0x1p120f,
                              float_of((high & 0x80) << 24 | (high & 0x7f) << 20) * 0x1p120f);
    }
  } else {
    SPLICE_UNROLL
    for (int i = 0; i < 2; ++i)
      pairs[i] = to_bf16_pair(portable_from_e4m3(static_cast<uint8_t>(codes >> (16 * i))),
                              portable_from_e4m3(static_cast<uint8_t>(codes >> (16 * i + 8))));
  }
}

}  // namespace splice::cuda
