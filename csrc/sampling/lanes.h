// Four lanes of double, the same on every instruction set: element by element, no fused and no reassociated operation.
// Included by units compiled with different flags: everything is internal to the including unit, and nothing of the standard library
// is called, so that no inline function can leak from one instruction set into another.
#pragma once

#include <stdint.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "passes.h"

#define SPLICE_INLINE static inline __attribute__((always_inline))

namespace {

constexpr int LANES = 4;
typedef double D4 __attribute__((vector_size(32)));
typedef int64_t L4 __attribute__((vector_size(32)));
typedef uint64_t U4 __attribute__((vector_size(32), aligned(8), may_alias));
typedef uint16_t H4 __attribute__((vector_size(8), aligned(2), may_alias));
typedef float F4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float F8 __attribute__((vector_size(32), aligned(4), may_alias));

SPLICE_INLINE D4 splat(double x) { return D4{x, x, x, x}; }
// Compilers make detours of these three; where they matter, they are spelled out. Of numbers that are none nothing is promised.
#if defined(__AVX__)
SPLICE_INLINE D4 widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
SPLICE_INLINE D4 larger(D4 a, D4 b) { return _mm256_max_pd(a, b); }
SPLICE_INLINE D4 smaller(D4 a, D4 b) { return _mm256_min_pd(a, b); }
SPLICE_INLINE void store_whole(D4 a, int32_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvttpd_epi32(a));
}
#else
SPLICE_INLINE D4 widen(const float* p) { return __builtin_convertvector(*reinterpret_cast<const F4*>(p), D4); }
SPLICE_INLINE D4 larger(D4 a, D4 b) { return a > b ? a : b; }
SPLICE_INLINE D4 smaller(D4 a, D4 b) { return a < b ? a : b; }
SPLICE_INLINE void store_whole(D4 a, int32_t* to) {
  for (int lane = 0; lane < LANES; ++lane) to[lane] = static_cast<int32_t>(a[lane]);
}
#endif

constexpr double ROUNDING = 6755399441055744.0;  // 1.5·2^52: adding it rounds to a whole number, held in the low bits

// e^z for z ≤ 0, relative error below 2e-14: z = n·ln 2 + r, |r| ≤ ln 2 / 2, Taylor series of degree 11, times 2^n through the
// exponent bits. Own code and not libm's, so that every machine agrees. z below −700 counts as −700.
SPLICE_INLINE D4 exp_of(D4 z) {
  z = larger(z, splat(-700.0));
  const D4 shifted = z * 1.4426950408889634 + ROUNDING;
  const D4 n = shifted - ROUNDING;
  D4 r = z - n * 0.693147180369123816490;
  r = r - n * 1.90821492927058770002e-10;
  // Pairs, then pairs of pairs: a short chain, and an order fixed by the source.
  const D4 r2 = r * r, r4 = r2 * r2;
  const D4 low = (r + 1.0) + r2 * (r * (1.0 / 6.0) + 0.5);
  const D4 middle = (r * (1.0 / 120.0) + 1.0 / 24.0) + r2 * (r * (1.0 / 5040.0) + 1.0 / 720.0);
  const D4 high = (r * (1.0 / 362880.0) + 1.0 / 40320.0) + r2 * (r * (1.0 / 39916800.0) + 1.0 / 3628800.0);
  const D4 p = low + r4 * (middle + r4 * high);
  return reinterpret_cast<D4>(reinterpret_cast<L4>(p) + (reinterpret_cast<L4>(shifted) << 52));
}

// A weight in whole units, rounded to nearest.
SPLICE_INLINE L4 whole_units(D4 weight) {
  constexpr double whole = 4503599627370496.0;  // 2^52
  const D4 held = weight * splice::sampling::MASS_UNITS + whole;
  return reinterpret_cast<L4>(held) - reinterpret_cast<L4>(splat(whole));
}
SPLICE_INLINE L4 units_of(D4 z) { return whole_units(exp_of(z)); }

// Below this z a token has no unit: e^z · 2^44 < 1/2.
constexpr double MASSLESS = -31.2;

}  // namespace
