#include "draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "candidates.h"

namespace splice::sampling {

namespace {

// (u / 2^53) · total, rounded down: below `total`.
uint64_t scaled(uint64_t random, uint64_t total) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(random) * total >> 53);
}

uint64_t share_of(double share, uint64_t total) {
  return std::min(total, static_cast<uint64_t>(std::ceil(share * static_cast<double>(total))));
}

// As the passes compute it.
double exponent(float logit, Scale scale) {
  return std::max((static_cast<double>(logit) - scale.top) * scale.sharpness, -700.0);
}

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
  Filter(const Row& row, const Choice& choice) : row_(row), choice_(choice) {}

  int64_t pick() {
    keep_min_p();
    keep_top_k();
    keep_typical();
    keep_top_p();
    if (!listed_) return pick_of_all();
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

  // Those whose surprise −ln p is nearest to the expected one (arXiv 2202.00666). With p = e^z / W the distance is |z − E[z]|.
  void keep_typical() {
    if (choice_.typical_p >= 1.0) return;
    const Moments sums = listed_ ? moments_of_left() : row_.passes.moments(row_.logits, row_.size, row_.scale, row_.largest);
    const double expected = sums.weighted_z / sums.weight;
    const uint64_t target = share_of(choice_.typical_p, sums.units);
    if (!listed_) {
      // Tokens so unlikely that all of them together are not needed, and farther from the expected than the likeliest is, come last.
      const double spare = 0.5 * (1.0 - choice_.typical_p) * sums.weight / static_cast<double>(row_.size);
      list(logit_below(std::min(std::log(spare), 2.0 * expected), row_.scale, choice_.temperature));
      if (left_.total() < target) list(std::numeric_limits<float>::lowest());
    }
    keep_nearest(expected, target);
  }

  Moments moments_of_left() const {
    std::vector<float> largest(static_cast<size_t>(blocks_of(left_.size())));
    row_.passes.maxima(left_.logits.data(), left_.size(), largest.data());
    return row_.passes.moments(left_.logits.data(), left_.size(), row_.scale, largest.data());
  }

  void keep_nearest(double expected, uint64_t target) {
    std::vector<double> distance(left_.ids.size());
    for (size_t i = 0; i < distance.size(); ++i) distance[i] = std::abs(exponent(left_.logits[i], row_.scale) - expected);
    keep_leading(left_, distance, left_.units, target);
  }

  // The fewest likeliest whose share reaches top_p (nucleus sampling, arXiv 1904.09751).
  void keep_top_p() {
    if (choice_.top_p >= 1.0) return;
    uint64_t target;
    if (listed_) {
      target = share_of(choice_.top_p, left_.total());
    } else {
      std::vector<uint64_t> units(static_cast<size_t>(blocks_of(row_.size)));
      const uint64_t total = row_.passes.block_masses(row_.logits, row_.size, row_.scale, row_.largest, units.data());
      target = share_of(choice_.top_p, total);
      // Tokens so unlikely that all of them together are not needed.
      const double spare = 0.5 * (1.0 - choice_.top_p) * (static_cast<double>(total) / MASS_UNITS) / static_cast<double>(row_.size);
      list(logit_below(std::log(spare), row_.scale, choice_.temperature));
      if (left_.total() < target) list(std::numeric_limits<float>::lowest());
    }
    keep_leading(left_, falling_logits(), left_.units, target);
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
  Candidates left_;
  bool listed_ = false;
};

}  // namespace

int64_t draw(const Passes& passes, const float* logits, int64_t size, const Choice& choice, float* largest) {
  const bool numbers = passes.maxima(logits, size, largest);
  const float top = *std::max_element(largest, largest + blocks_of(size));
  if (!numbers || !std::isfinite(top)) return NOT_FINITE;
  const double sharpness = choice.temperature > 0.0 ? std::min(1.0 / choice.temperature, 1e300) : 1.0;
  const Row row{passes, logits, size, largest, {top, sharpness}};
  if (choice.temperature <= 0.0) return lowest_largest(row);
  return Filter(row, choice).pick();
}

}  // namespace splice::sampling
