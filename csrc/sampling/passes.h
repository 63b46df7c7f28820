// The passes over a row of logits `[size]` that each instruction set provides. Nothing here allocates.
//
// A row is seen in blocks of BLOCK tokens; the last may be shorter. `largest` holds one maximum per block. z = (logit − top) · sharpness
// is the exponent of a token's weight e^z, at most 0. Weights are counted in whole units, e^z in MASS_UNITS: sums of integers are
// exact in any order, so that no result depends on how a sum was cut.
#pragma once

#include <stdint.h>

namespace splice::sampling {

constexpr int64_t BLOCK = 64;
// 2^44 units for the likeliest token: a row of up to 2^19 tokens sums below 2^63.
constexpr int MASS_BITS = 44;
constexpr double MASS_UNITS = 17592186044416.0;
constexpr int64_t MAX_TOKENS = int64_t{1} << 19;

constexpr int BUCKETS = 1024;

constexpr int64_t blocks_of(int64_t size) { return (size + BLOCK - 1) / BLOCK; }

struct Scale {
  double top;        // the largest logit
  double sharpness;  // 1 / temperature
};

// Σ e^z and Σ z·e^z, in eight fixed partial sums, and the units.
struct Moments {
  double weight = 0.0, weighted_z = 0.0;
  uint64_t units = 0;
};

// Tokens by rising key, which is `top − logit`, or |max(z, −700) − expected|. Bucket: key / range · (BUCKETS − 1), rounded down; keys
// beyond the range share the last.
struct Order {
  bool by_distance;
  double expected;
  double range;  // above 0
};

struct Passes {
  // The largest logit of each block. Returns whether no logit is NaN.
  bool (*maxima)(const float* logits, int64_t size, float* largest);
  // Units of each token.
  void (*masses)(const float* logits, int64_t size, Scale scale, uint64_t* units);
  // Units of each block; returns their sum.
  uint64_t (*block_masses)(const float* logits, int64_t size, Scale scale, const float* largest, uint64_t* units);
  // Σ e^z alone, the same number as in `moments`.
  double (*weight)(const float* logits, int64_t size, Scale scale, const float* largest);
  // And, as `spread`, the units.
  Moments (*moments)(const float* logits, int64_t size, Scale scale, const float* largest, uint64_t* units,
                     uint64_t* block_units);
  // Units of each token, in whole blocks, and of each block; returns their sum. Where a block has none, those of its tokens are left
  // unwritten.
  uint64_t (*spread)(const float* logits, int64_t size, Scale scale, const float* largest, uint64_t* units,
                     uint64_t* block_units);
  // Which bucket each token of a block with units falls into, and the units that each of them has.
  void (*buckets)(const float* logits, int64_t size, Scale scale, const Order& order, const float* largest, const uint64_t* units,
                  const uint64_t* block_units, uint16_t* bucket, uint64_t* filled);
  // Takes the units of tokens in buckets behind `last`; ids of those in `last`, ascending. Returns how many these are.
  int64_t (*cut)(int64_t size, uint16_t last, uint16_t* bucket, uint64_t* units, uint64_t* block_units, uint32_t* ids);
  // Ids of the tokens with a logit of at least `least`, ascending; returns how many.
  int64_t (*at_least)(const float* logits, int64_t size, float least, const float* largest, uint32_t* ids);
  // How many logits are above `bar`.
  int64_t (*count_above)(const float* logits, int64_t size, float bar, const float* largest);
};

const Passes& portable_passes();
#if defined(__x86_64__)
const Passes& avx2_passes();
const Passes& avx512_passes();
#endif

}  // namespace splice::sampling
