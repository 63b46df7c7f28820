// Compiled once per instruction set: SPLICE_TABLE names the table this unit provides, the flags decide what a lane is made of.
#include "lanes.h"
#include "passes.h"

namespace splice::sampling {

namespace {

constexpr float LOWEST = -__builtin_inff();

// A block that is whole: itself, or a copy filled up with −inf.
struct Filled {
  float copy[BLOCK];
  const float* at(const float* logits, int64_t first, int64_t size) {
    if (first + BLOCK <= size) return logits + first;
    for (int64_t i = 0; i < BLOCK; ++i) copy[i] = first + i < size ? logits[first + i] : LOWEST;
    return copy;
  }
};

bool maxima(const float* logits, int64_t size, float* largest) {
  typedef int32_t I8 __attribute__((vector_size(32)));
  Filled filled;
  I8 strange{};
  for (int64_t first = 0; first < size; first += BLOCK) {
    const float* p = filled.at(logits, first, size);
    F8 most = *reinterpret_cast<const F8*>(p);
    strange |= most != most;
    for (int64_t i = 8; i < BLOCK; i += 8) {
      const F8 next = *reinterpret_cast<const F8*>(p + i);
      strange |= next != next;
      most = next > most ? next : most;
    }
    float best = most[0];
    for (int i = 1; i < 8; ++i) best = most[i] > best ? most[i] : best;
    largest[first / BLOCK] = best;
  }
  int32_t any = 0;
  for (int i = 0; i < 8; ++i) any |= strange[i];
  return any == 0;
}

SPLICE_INLINE D4 exponents(const float* p, Scale scale) { return (widen(p) - scale.top) * scale.sharpness; }

SPLICE_INLINE uint64_t sum_of(L4 units) { return static_cast<uint64_t>((units[0] + units[2]) + (units[1] + units[3])); }

SPLICE_INLINE bool massless(float largest, Scale scale) {
  return (static_cast<double>(largest) - scale.top) * scale.sharpness < MASSLESS;
}

void masses(const float* logits, int64_t size, Scale scale, uint64_t* units) {
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) {
    const L4 counted = units_of(exponents(logits + i, scale));
    for (int lane = 0; lane < LANES; ++lane) units[i + lane] = static_cast<uint64_t>(counted[lane]);
  }
  if (i == size) return;
  float rest[LANES];
  for (int lane = 0; lane < LANES; ++lane) rest[lane] = i + lane < size ? logits[i + lane] : LOWEST;
  const L4 counted = units_of(exponents(rest, scale));
  for (int lane = 0; i + lane < size; ++lane) units[i + lane] = static_cast<uint64_t>(counted[lane]);
}

uint64_t block_masses(const float* logits, int64_t size, Scale scale, const float* largest, uint64_t* units) {
  Filled filled;
  uint64_t total = 0;
  for (int64_t first = 0, block = 0; first < size; first += BLOCK, ++block) {
    units[block] = 0;
    if (massless(largest[block], scale)) continue;
    const float* p = filled.at(logits, first, size);
    L4 counted{};
    for (int64_t i = 0; i < BLOCK; i += LANES) counted += units_of(exponents(p + i, scale));
    for (int lane = 0; lane < LANES; ++lane) units[block] += static_cast<uint64_t>(counted[lane]);
    total += units[block];
  }
  return total;
}

// `more(w, z, place)` sees every four w = e^z from a place on, beside the sum of them.
template <class More>
SPLICE_INLINE double sum_weights(const float* logits, int64_t size, Scale scale, const float* largest, More more) {
  Filled filled;
  D4 weight[2]{};
  for (int64_t first = 0, block = 0; first < size; first += BLOCK, ++block) {
    if ((static_cast<double>(largest[block]) - scale.top) * scale.sharpness < -80.0) continue;  // e^−80: no bit of any sum
    const float* p = filled.at(logits, first, size);
    for (int64_t i = 0; i < BLOCK; i += LANES) {
      D4 z = exponents(p + i, scale);
      z = larger(z, splat(-700.0));
      const D4 w = exp_of(z);
      weight[i / LANES % 2] += w;
      more(w, z, first + i);
    }
  }
  const D4 sum = weight[0] + weight[1];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

double weight(const float* logits, int64_t size, Scale scale, const float* largest) {
  return sum_weights(logits, size, scale, largest, [](D4, D4, int64_t) __attribute__((always_inline)) {});
}

Moments moments(const float* logits, int64_t size, Scale scale, const float* largest, uint64_t* units, uint64_t* block_units) {
  D4 weighted[2]{};
  L4 own{};
  uint64_t total = 0;
  for (int64_t block = 0; block < blocks_of(size); ++block) block_units[block] = 0;
  const double sum = sum_weights(logits, size, scale, largest, [&](D4 w, D4 z, int64_t place) __attribute__((always_inline)) {
    weighted[place / LANES % 2] += w * z;
    const L4 counted = whole_units(w);
    *reinterpret_cast<U4*>(units + place) = reinterpret_cast<U4>(counted);
    own += counted;
    if (place % BLOCK != BLOCK - LANES) return;
    total += block_units[place / BLOCK] = sum_of(own);
    own = L4{};
  });
  const D4 wz = weighted[0] + weighted[1];
  return {sum, (wz[0] + wz[2]) + (wz[1] + wz[3]), total};
}

uint64_t spread(const float* logits, int64_t size, Scale scale, const float* largest, uint64_t* units, uint64_t* block_units) {
  Filled filled;
  uint64_t total = 0;
  for (int64_t first = 0, block = 0; first < size; first += BLOCK, ++block) {
    block_units[block] = 0;
    if (massless(largest[block], scale)) continue;
    const float* p = filled.at(logits, first, size);
    L4 own{};
    for (int64_t i = 0; i < BLOCK; i += LANES) {
      const L4 counted = units_of(exponents(p + i, scale));
      *reinterpret_cast<U4*>(units + first + i) = reinterpret_cast<U4>(counted);
      own += counted;
    }
    total += block_units[block] = sum_of(own);
  }
  return total;
}

constexpr uint16_t FAR = UINT16_MAX;  // in place of a block's first bucket: all of its keys are beyond the range

template <bool BY_DISTANCE>
SPLICE_INLINE D4 keys_of(D4 logits, Scale scale, const Order& order) {
  if constexpr (!BY_DISTANCE) return splat(scale.top) - logits;
  const D4 distance = larger((logits - scale.top) * scale.sharpness, splat(-700.0)) - order.expected;
  return larger(distance, -distance);
}

template <bool BY_DISTANCE>
void buckets_of(const float* logits, int64_t size, Scale scale, const Order& order, const float* largest, const uint64_t* units,
                const uint64_t* block_units, uint16_t* bucket, uint64_t* filled) {
  Filled whole;
  const double width = (BUCKETS - 1) / order.range;
  uint64_t halves[2][BUCKETS] = {};  // so that neighbours in one bucket need not wait for each other
  for (int64_t first = 0, block = 0; first < size; first += BLOCK, ++block) {
    if (block_units[block] == 0) continue;
    const double top = largest[block];
    const bool rises = !BY_DISTANCE || (top - scale.top) * scale.sharpness < order.expected;
    if (rises && keys_of<BY_DISTANCE>(splat(top), scale, order)[0] >= order.range) {
      bucket[first] = FAR;
      halves[0][BUCKETS - 1] += block_units[block];
      continue;
    }
    const float* p = whole.at(logits, first, size);
    int32_t index[BLOCK];
    for (int64_t i = 0; i < BLOCK; i += LANES)
      store_whole(smaller(keys_of<BY_DISTANCE>(widen(p + i), scale, order), splat(order.range)) * width, index + i);
    for (int64_t i = 0; i < BLOCK; ++i) {
      bucket[first + i] = static_cast<uint16_t>(index[i]);
      halves[i % 2][index[i]] += units[first + i];
    }
  }
  for (int i = 0; i < BUCKETS; ++i) filled[i] = halves[0][i] + halves[1][i];
}

void buckets(const float* logits, int64_t size, Scale scale, const Order& order, const float* largest, const uint64_t* units,
             const uint64_t* block_units, uint16_t* bucket, uint64_t* filled) {
  const auto run = order.by_distance ? buckets_of<true> : buckets_of<false>;
  run(logits, size, scale, order, largest, units, block_units, bucket, filled);
}

int64_t cut(int64_t size, uint16_t last, uint16_t* bucket, uint64_t* units, uint64_t* block_units, uint32_t* ids) {
  int64_t count = 0;
  const L4 bound = L4{} + static_cast<int64_t>(last);
  for (int64_t first = 0, block = 0; first < size; first += BLOCK, ++block) {
    if (block_units[block] == 0) continue;
    if (bucket[first] == FAR) {
      if (last < BUCKETS - 1) {
        block_units[block] = 0;
        continue;
      }
      for (int64_t i = first; i < first + BLOCK; ++i) bucket[i] = BUCKETS - 1;
    }
    L4 own{}, edge{};
    for (int64_t i = first; i < first + BLOCK; i += LANES) {
      const L4 place = __builtin_convertvector(*reinterpret_cast<const H4*>(bucket + i), L4);
      U4* kept = reinterpret_cast<U4*>(units + i);
      const L4 left = reinterpret_cast<L4>(*kept) & (place <= bound);
      *kept = reinterpret_cast<U4>(left);
      own += left;
      edge |= place == bound;
    }
    block_units[block] = sum_of(own);
    if (!(edge[0] | edge[1] | edge[2] | edge[3])) continue;
    for (int64_t i = first; i < first + BLOCK; ++i) {
      ids[count] = static_cast<uint32_t>(i);
      count += bucket[i] == last;
    }
  }
  return count;
}

int64_t at_least(const float* logits, int64_t size, float least, const float* largest, uint32_t* ids) {
  int64_t count = 0;
  for (int64_t first = 0, block = 0; first < size; first += BLOCK, ++block) {
    if (!(largest[block] >= least)) continue;
    const int64_t last = first + BLOCK < size ? first + BLOCK : size;
    for (int64_t i = first; i < last; ++i) {
      ids[count] = static_cast<uint32_t>(i);
      count += logits[i] >= least;
    }
  }
  return count;
}

int64_t count_above(const float* logits, int64_t size, float bar, const float* largest) {
  int64_t count = 0;
  for (int64_t first = 0, block = 0; first < size; first += BLOCK, ++block) {
    if (!(largest[block] > bar)) continue;
    const int64_t last = first + BLOCK < size ? first + BLOCK : size;
    for (int64_t i = first; i < last; ++i) count += logits[i] > bar;
  }
  return count;
}

}  // namespace

const Passes& SPLICE_TABLE() {
  static constexpr Passes table{maxima, masses, block_masses, weight, moments, spread, buckets, cut, at_least, count_above};
  return table;
}

}  // namespace splice::sampling
