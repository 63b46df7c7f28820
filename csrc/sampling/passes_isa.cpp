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

// `more(w, z)` sees every w = e^z beside the sum of them.
template <class More>
SPLICE_INLINE double sum_weights(const float* logits, int64_t size, Scale scale, const float* largest, More more) {
  Filled filled;
  D4 weight[2]{};
  for (int64_t first = 0, block = 0; first < size; first += BLOCK, ++block) {
    if ((static_cast<double>(largest[block]) - scale.top) * scale.sharpness < -80.0) continue;  // e^−80: no bit of any sum
    const float* p = filled.at(logits, first, size);
    for (int64_t i = 0; i < BLOCK; i += LANES) {
      D4 z = exponents(p + i, scale);
      z = z < splat(-700.0) ? splat(-700.0) : z;
      const D4 w = exp_of(z);
      weight[i / LANES % 2] += w;
      more(w, z, i / LANES % 2);
    }
  }
  const D4 sum = weight[0] + weight[1];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

double weight(const float* logits, int64_t size, Scale scale, const float* largest) {
  return sum_weights(logits, size, scale, largest, [](D4, D4, int64_t) __attribute__((always_inline)) {});
}

Moments moments(const float* logits, int64_t size, Scale scale, const float* largest) {
  D4 weighted[2]{};
  L4 units{};
  const double sum = sum_weights(logits, size, scale, largest, [&](D4 w, D4 z, int64_t half) __attribute__((always_inline)) {
    weighted[half] += w * z;
    units += whole_units(w);
  });
  const D4 wz = weighted[0] + weighted[1];
  return {sum, (wz[0] + wz[2]) + (wz[1] + wz[3]), static_cast<uint64_t>((units[0] + units[2]) + (units[1] + units[3]))};
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
  static constexpr Passes table{maxima, masses, block_masses, weight, moments, at_least, count_above};
  return table;
}

}  // namespace splice::sampling
