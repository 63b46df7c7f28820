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

// Four codes as the high bytes of four halves of words, two a word in ascending order.
SPLICE_DEVICE void spread_codes(uint32_t codes, uint32_t (&halves)[2]) {
#if defined(__CUDACC__)
  halves[0] = __byte_perm(codes, 0, 0x1404);
  halves[1] = __byte_perm(codes, 0, 0x3424);
#else
  halves[0] = (codes & 0xff) << 8 | (codes & 0xff00) << 16;
  halves[1] = (codes >> 8 & 0xff00) | (codes & 0xff000000);
#endif
}

// Two bfloat16 times 2^120, which is exact here: none has an exponent above 15.
SPLICE_DEVICE uint32_t raised_pair(uint32_t pair) {
#if defined(__CUDACC__)
  constexpr uint32_t POWER = 0x7b807b80, NOTHING = 0x80008000;  // to −0 only −0 adds up to −0
  uint32_t raised;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(raised) : "r"(pair), "r"(POWER), "r"(NOTHING));
  return raised;
#else
  return to_bf16_pair(float_of(pair << 16) * 0x1p120f, float_of(pair & 0xffff0000) * 0x1p120f);
#endif
}

// Not 0 where one of four codes is NaN.
SPLICE_DEVICE uint32_t e4m3_nans(uint32_t codes) { return ((codes & 0x7f7f7f7f) + 0x01010101) & 0x80808080; }

// Four codes as bfloat16, which holds each exactly: the first and second in pairs[0], the others in pairs[1]. NaN comes out as ±480.
SPLICE_DEVICE void e4m3_numbers_to_bf16(uint32_t codes, uint32_t (&pairs)[2]) {
  uint32_t halves[2];
  spread_codes(codes, halves);
  // Four places further down, its sign apart, a code is a bfloat16 of 2^-120 of its value, subnormal where it is.
  SPLICE_UNROLL
  for (int i = 0; i < 2; ++i) pairs[i] = raised_pair((halves[i] >> 4 & 0x07f007f0) | (halves[i] & 0x80008000));
}

// Puts right what that left of NaN.
SPLICE_DEVICE void mark_nans(uint32_t codes, uint32_t (&pairs)[2]) {
  SPLICE_UNROLL
  for (int i = 0; i < 4; ++i)
    if ((codes >> (8 * i) & 0x7f) == E4M3_NAN) pairs[i / 2] |= 0x7fff << (16 * (i % 2));
}

SPLICE_DEVICE void e4m3_to_bf16(uint32_t codes, uint32_t (&pairs)[2]) {
  e4m3_numbers_to_bf16(codes, pairs);
  if (e4m3_nans(codes)) mark_nans(codes, pairs);
}

}  // namespace splice::cuda
