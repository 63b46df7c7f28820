// AVX-512-VNNI and AVX-VNNI as far as the kernels use them.
#pragma once

#include <stdint.h>

#include "avx512.h"

namespace emulation {

// Of each word, four products of unsigned bytes of a and signed ones of b, added to the word of sum; it wraps, never saturates.
EMULATED __m256i dpbusd_half(__m256i sum, __m256i a, __m256i b) {
  typedef uint32_t Words __attribute__((vector_size(32)));
  typedef uint8_t Unsigned __attribute__((vector_size(32)));
  typedef int8_t Signed __attribute__((vector_size(32)));
  Words out = __builtin_bit_cast(Words, sum);
  const Unsigned x = __builtin_bit_cast(Unsigned, a);
  const Signed y = __builtin_bit_cast(Signed, b);
  for (int word = 0; word < 8; ++word)
    for (int byte = 4 * word; byte < 4 * word + 4; ++byte) out[word] += static_cast<uint32_t>(x[byte] * y[byte]);
  return __builtin_bit_cast(__m256i, out);
}
EMULATED __m512i dpbusd(__m512i sum, __m512i a, __m512i b) {
  const auto s = halves(sum), x = halves(a), y = halves(b);
  return whole(dpbusd_half(s.half[0], x.half[0], y.half[0]), dpbusd_half(s.half[1], x.half[1], y.half[1]));
}

}  // namespace emulation

#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32 emulation::dpbusd_half
#define _mm512_dpbusd_epi32 emulation::dpbusd
