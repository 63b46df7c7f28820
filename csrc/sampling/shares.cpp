#include "shares.h"

#include <algorithm>
#include <cmath>

#include "leading.h"

namespace splice::sampling {

uint64_t share_of(double share, uint64_t total) {
  return std::min(total, static_cast<uint64_t>(std::ceil(share * static_cast<double>(total))));
}

uint64_t scaled(uint64_t random, uint64_t total) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(random) * total >> 53);
}

double exponent(float logit, Scale scale) {
  return std::max((static_cast<double>(logit) - scale.top) * scale.sharpness, -700.0);
}

Shares::Shares(const Row& row, double temperature, Memory& memory) : row_(row), temperature_(temperature), memory_(memory) {
  memory_.reserve_shares(row.size);
}

void Shares::keep_typical(double share) {
  const Moments sums = row_.passes.moments(row_.logits, row_.size, row_.scale, row_.largest, memory_.units.data(),
                                           memory_.block_units.data());
  total_ = sums.units;
  const double expected = sums.weighted_z / sums.weight;
  // Tokens below that depth, and farther from the expected than the likeliest is, come last.
  const double depth = std::min(depth_of(share, sums.weight), 2.0 * expected);
  keep({true, expected, expected - depth}, share_of(share, total_));
}

void Shares::keep_top(double share) {
  if (total_ == 0)
    total_ = row_.passes.spread(row_.logits, row_.size, row_.scale, row_.largest, memory_.units.data(),
                                memory_.block_units.data());
  const double depth = depth_of(share, static_cast<double>(total_) / MASS_UNITS);
  keep({false, 0.0, -depth * temperature_}, share_of(share, total_));
}

double Shares::depth_of(double share, double weight) const {
  return std::log(0.5 * (1.0 - share) * weight / static_cast<double>(row_.size));
}

void Shares::keep(const Order& wanted, uint64_t target) {
  Order order = wanted;
  order.range = std::max(order.range, 1e-280);
  target = std::max<uint64_t>(target, 1);
  uint64_t filled[BUCKETS];
  row_.passes.buckets(row_.logits, row_.size, row_.scale, order, row_.largest, memory_.units.data(),
                      memory_.block_units.data(), memory_.bucket.data(), filled);
  uint64_t have = 0;
  int last = 0;
  while (last < BUCKETS - 1 && have + filled[last] < target) have += filled[last++];
  total_ = have + filled[last];
  const int64_t edge = row_.passes.cut(row_.size, static_cast<uint16_t>(last), memory_.bucket.data(), memory_.units.data(),
                                       memory_.block_units.data(), memory_.ids.data());
  memory_.items.clear();
  for (int64_t i = 0; i < edge; ++i) {
    const uint32_t id = memory_.ids[static_cast<size_t>(i)];
    // Without mass it can neither be drawn nor help to reach the target.
    if (memory_.units[id]) memory_.items.push_back({key_of(order, id), memory_.units[id], id});
  }
  keep_shortest(memory_.items, have, target, [&](const Item& item) {
    memory_.units[item.id] = 0;
    memory_.block_units[item.id / BLOCK] -= item.amount;
    total_ -= item.amount;
  });
}

double Shares::key_of(const Order& order, uint32_t id) const {
  const float logit = row_.logits[id];
  return order.by_distance ? std::abs(exponent(logit, row_.scale) - order.expected) : -static_cast<double>(logit);
}

int64_t Shares::at(uint64_t random) const {
  uint64_t point = scaled(random, total_);
  size_t block = 0;
  while (point >= memory_.block_units[block]) point -= memory_.block_units[block++];
  size_t id = block * BLOCK;
  while (point >= memory_.units[id]) point -= memory_.units[id++];
  return static_cast<int64_t>(id);
}

}  // namespace splice::sampling
