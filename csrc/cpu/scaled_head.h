// A head's keys or values on their way into a cache of 8 bits: one scale for all of it, by the rules of a block of activations
// (int8_rows.h). scale = m / L where m is the largest magnitude and L the type's largest number; x · (L / m) is rounded to nearest,
// ties to even. A head whose m is under 2^-100 is all zeros, scale included; one with infinity or NaN has a NaN for a scale.
// Reads 4 and writes 1 byte an element, twice over registers: bound by the projections before it.
#pragma once

#include "fp8.h"
#include "int8_rows.h"

namespace {

SPLICE_INLINE void store_number(int8_t* to, float value) {
  constexpr float MAGIC = 12582912.0f;  // 1.5·2^23: in the sum, the low mantissa bits are the nearest integer
  *to = static_cast<int8_t>(as_bits(value + MAGIC) - as_bits(MAGIC));
}
SPLICE_INLINE void store_number(Fp8* to, float value) { *to = to_fp8(value); }
SPLICE_INLINE constexpr float largest_of(const int8_t*) { return 127.0f; }
SPLICE_INLINE constexpr float largest_of(const Fp8*) { return FP8_LARGEST; }

template <class Element>
SPLICE_INLINE void scale_head(Element* numbers, float* scale, const float* x, int64_t size) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t magnitude = as_bits(x[i]) & MAGNITUDE;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float bound = largest_of(numbers);
  const bool counts = largest >= SMALLEST && largest < INFINITE;
  *scale = counts ? as_float(largest) / bound : largest < SMALLEST ? 0.0f : as_float(0x7fc00000u);
  const float inverse = counts ? bound / as_float(largest) : 0.0f;
  for (int64_t i = 0; i < size; ++i) store_number(numbers + i, counts ? x[i] * inverse : 0.0f);
}

}  // namespace
