// The numbers of a draw, bit for bit those of csrc/sampling: weights in whole units, whose sums are exact in any order, and Philox.
#pragma once

#include <math.h>

#include "platform.h"

namespace splice::cuda {

constexpr double MASS_UNITS = 17592186044416.0;  // 2^44, of the likeliest token

SPLICE_BOTH uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
SPLICE_BOTH double of_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// e^z for z ≤ 0 as csrc/sampling/lanes.h computes it, operation by operation; z below −700 counts as −700.
SPLICE_DEVICE double exp_of(double z) {
  constexpr double rounding = 6755399441055744.0;
  z = z < -700.0 ? -700.0 : z;
  const double shifted = sum(product(z, 1.4426950408889634), rounding), n = sum(shifted, -rounding);
  double r = sum(z, -product(n, 0.693147180369123816490));
  r = sum(r, -product(n, 1.90821492927058770002e-10));
  const double r2 = product(r, r), r4 = product(r2, r2);
  const double low = sum(sum(r, 1.0), product(r2, sum(product(r, 1.0 / 6.0), 0.5)));
  const double middle = sum(sum(product(r, 1.0 / 120.0), 1.0 / 24.0), product(r2, sum(product(r, 1.0 / 5040.0), 1.0 / 720.0)));
  const double high =
      sum(sum(product(r, 1.0 / 362880.0), 1.0 / 40320.0), product(r2, sum(product(r, 1.0 / 39916800.0), 1.0 / 3628800.0)));
  const double p = sum(low, product(r4, sum(middle, product(r4, high))));
  return of_bits(bits_of(p) + (bits_of(shifted) << 52));
}

// The mass of a logit.
SPLICE_DEVICE uint64_t units_of(float logit, double top, double sharpness) {
  constexpr double whole = 4503599627370496.0;  // 2^52: adding it rounds to a whole number
  const double z = product(sum(static_cast<double>(logit), -top), sharpness);
  return bits_of(sum(product(exp_of(z), MASS_UNITS), whole)) - bits_of(whole);
}

// The first word of Philox4x64-10 (Salmon et al., SC 2011) with key (key0, key1) and counter (1, counter1, counter2, 0).
SPLICE_DEVICE uint64_t philox(uint64_t key0, uint64_t key1, uint64_t counter1, uint64_t counter2) {
  uint64_t c0 = 1, c1 = counter1, c2 = counter2, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = 0xD2E7470EE14C6C93ULL, right = 0xCA5A826395121157ULL;
    const uint64_t first_high = high_product(left, c0), first_low = left * c0;
    const uint64_t second_high = high_product(right, c2), second_low = right * c2;
    c0 = second_high ^ c1 ^ key0;
    c1 = second_low;
    c2 = first_high ^ c3 ^ key1;
    c3 = first_low;
    key0 += 0x9E3779B97F4A7C15ULL;
    key1 += 0xBB67AE8584CAA73BULL;
  }
  return c0;
}

// (random / 2^53)·total, rounded down, for 53 random bits.
SPLICE_DEVICE uint64_t scaled(uint64_t random, uint64_t total) { return high_product(random, total) << 11 | (random * total) >> 53; }

// What a share of the total comes to, rounded up.
SPLICE_DEVICE uint64_t share_of(double share, uint64_t total) {
  const auto amount = static_cast<uint64_t>(ceil(product(share, static_cast<double>(total))));
  return amount < total ? amount : total;
}

// Orders tokens: a larger number is a larger logit, or the lower id of two alike; both zeros are alike.
SPLICE_DEVICE uint64_t rank_of(float logit, int64_t id) {
  uint32_t bits;
  const float positive_zero = logit + 0.0f;
  memcpy(&bits, &positive_zero, sizeof bits);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(id));
}

}  // namespace splice::cuda
