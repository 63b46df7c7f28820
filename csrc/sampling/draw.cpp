#include "draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "candidates.h"
#include "shares.h"

namespace splice::sampling {

namespace {

// The logit at exponent z, or a little below it: a bound that rounding cannot lift.
float logit_below(double z, Scale scale, double temperature) {
  const double logit = scale.top + z * temperature;
  return static_cast<float>(logit - 1e-6 * (1.0 + std::abs(logit) + std::abs(scale.top)));
}

int64_t lowest_largest(const Row& row) {
  const float top = static_cast<float>(row.scale.top);
  int64_t i = 0;
  while (row.largest[i / BLOCK] != top) i += BLOCK;
  while (row.logits[i] != top) ++i;
  return i;
}

// Which tokens are left: all of the row until a filter has named them.
class Filter {
 public:
  Filter(const Row& row, const Choice& choice, Memory& memory) : row_(row), choice_(choice), memory_(memory) {}

  int64_t pick() {
    keep_min_p();
    keep_top_k();
    if (!listed_) return choice_.typical_p < 1.0 || choice_.top_p < 1.0 ? pick_of_shares() : pick_of_all();
    keep_typical();
    keep_top_p();
    return at_unit(left_, scaled(choice_.random, left_.total()));
  }

 private:
  void list(float least) {
    left_ = gather(row_, least);
    listed_ = true;
  }

  // Those whose units are at least min_p of the likeliest one's.
  void keep_min_p() {
    if (choice_.min_p <= 0.0) return;
    list(logit_below(std::log(choice_.min_p) - 1e-9, row_.scale, choice_.temperature));
    const auto least = static_cast<uint64_t>(std::ceil(choice_.min_p * MASS_UNITS));
    size_t count = 0;
    for (size_t i = 0; i < left_.ids.size(); ++i) {
      if (left_.units[i] < least) continue;
      left_.ids[count] = left_.ids[i];
      left_.logits[count] = left_.logits[i];
      left_.units[count++] = left_.units[i];
    }
    left_.ids.resize(count);
    left_.logits.resize(count);
    left_.units.resize(count);
  }

  void keep_top_k() {
    if (choice_.top_k <= 0 || choice_.top_k >= (listed_ ? left_.size() : row_.size)) return;
    if (!listed_) list(bound_of_largest(row_, choice_.top_k));
    if (choice_.top_k < left_.size()) keep_leading(left_, falling_logits(), {}, static_cast<uint64_t>(choice_.top_k));
  }

  // See `Shares`.
  void keep_typical() {
    if (choice_.typical_p >= 1.0) return;
    const Moments sums = moments_of_left();
    const double expected = sums.weighted_z / sums.weight;
    std::vector<double> distance(left_.ids.size());
    for (size_t i = 0; i < distance.size(); ++i) distance[i] = std::abs(exponent(left_.logits[i], row_.scale) - expected);
    keep_leading(left_, distance, left_.units, share_of(choice_.typical_p, sums.units));
  }

  Moments moments_of_left() const {
    const auto blocks = static_cast<size_t>(blocks_of(left_.size()));
    std::vector<float> largest(blocks);
    std::vector<uint64_t> units(blocks * BLOCK), block_units(blocks);
    row_.passes.maxima(left_.logits.data(), left_.size(), largest.data());
    return row_.passes.moments(left_.logits.data(), left_.size(), row_.scale, largest.data(), units.data(),
                               block_units.data());
  }

  void keep_top_p() {
    if (choice_.top_p >= 1.0) return;
    keep_leading(left_, falling_logits(), left_.units, share_of(choice_.top_p, left_.total()));
  }

  int64_t pick_of_shares() const {
    Shares shares(row_, choice_.temperature, memory_);
    if (choice_.typical_p < 1.0) shares.keep_typical(choice_.typical_p);
    if (choice_.top_p < 1.0) shares.keep_top(choice_.top_p);
    return shares.at(choice_.random);
  }

  std::vector<double> falling_logits() const {
    std::vector<double> keys(left_.logits.size());
    for (size_t i = 0; i < keys.size(); ++i) keys[i] = -static_cast<double>(left_.logits[i]);
    return keys;
  }

  int64_t pick_of_all() const {
    std::vector<uint64_t> units(static_cast<size_t>(blocks_of(row_.size)));
    const uint64_t total = row_.passes.block_masses(row_.logits, row_.size, row_.scale, row_.largest, units.data());
    uint64_t point = scaled(choice_.random, total);
    size_t block = 0;
    while (point >= units[block]) point -= units[block++];
    const int64_t first = static_cast<int64_t>(block) * BLOCK, size = std::min(BLOCK, row_.size - first);
    uint64_t each[BLOCK];
    row_.passes.masses(row_.logits + first, size, row_.scale, each);
    int64_t i = 0;
    while (point >= each[i]) point -= each[i++];
    return first + i;
  }

  const Row& row_;
  const Choice& choice_;
  Memory& memory_;
  Candidates left_;
  bool listed_ = false;
};

}  // namespace

int64_t draw(const Passes& passes, const float* logits, int64_t size, const Choice& choice, Memory& memory) {
  memory.reserve_row(size);
  float* largest = memory.largest.data();
  const bool numbers = passes.maxima(logits, size, largest);
  const float top = *std::max_element(largest, largest + blocks_of(size));
  if (!numbers || !std::isfinite(top)) return NOT_FINITE;
  const double sharpness = choice.temperature > 0.0 ? std::min(1.0 / choice.temperature, 1e300) : 1.0;
  const Row row{passes, logits, size, largest, {top, sharpness}};
  if (choice.temperature <= 0.0) return lowest_largest(row);
  return Filter(row, choice, memory).pick();
}

}  // namespace splice::sampling
