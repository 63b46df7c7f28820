#include "candidates.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

namespace splice::sampling {

namespace {

constexpr int64_t SORTED_AT_ONCE = 256;
constexpr int64_t BUCKETS = 1024;

uint64_t amount_of(const std::vector<uint64_t>& amounts, uint32_t index) { return amounts.empty() ? 1 : amounts[index]; }

// How many of `indices`, sorted by key, are needed on top of `have`.
int64_t take_sorted(std::vector<uint32_t>& indices, const std::vector<double>& keys, const std::vector<uint64_t>& amounts,
                    uint64_t have, uint64_t target) {
  std::sort(indices.begin(), indices.end(),
            [&](uint32_t a, uint32_t b) { return keys[a] != keys[b] ? keys[a] < keys[b] : a < b; });
  int64_t taken = 0;
  for (const uint32_t index : indices) {
    if (have >= target) break;
    have += amount_of(amounts, index);
    ++taken;
  }
  return taken;
}

void keep_marked(Candidates& candidates, const std::vector<char>& kept) {
  size_t count = 0;
  for (size_t i = 0; i < kept.size(); ++i) {
    if (!kept[i]) continue;
    candidates.ids[count] = candidates.ids[i];
    candidates.logits[count] = candidates.logits[i];
    candidates.units[count++] = candidates.units[i];
  }
  candidates.ids.resize(count);
  candidates.logits.resize(count);
  candidates.units.resize(count);
}

}  // namespace

uint64_t Candidates::total() const { return std::accumulate(units.begin(), units.end(), uint64_t{0}); }

Candidates gather(const Row& row, float least) {
  Candidates found;
  found.ids.resize(static_cast<size_t>(row.size) + 1);  // the pass writes one past the last it keeps
  const int64_t count = row.passes.at_least(row.logits, row.size, std::max(least, std::numeric_limits<float>::lowest()),
                                            row.largest, found.ids.data());
  found.ids.resize(static_cast<size_t>(count));
  found.logits.resize(found.ids.size());
  found.units.resize(found.ids.size());
  for (size_t i = 0; i < found.ids.size(); ++i) found.logits[i] = row.logits[found.ids[i]];
  row.passes.masses(found.logits.data(), count, row.scale, found.units.data());
  return found;
}

float bound_of_largest(const Row& row, int64_t count) {
  // As many blocks as that have a maximum this large, so at least as many tokens do.
  const int64_t blocks = blocks_of(row.size);
  if (count > blocks) return -std::numeric_limits<float>::infinity();
  std::vector<float> largest(row.largest, row.largest + blocks);
  std::nth_element(largest.begin(), largest.begin() + (count - 1), largest.end(), std::greater<float>());
  return largest[static_cast<size_t>(count - 1)];
}

void keep_leading(Candidates& candidates, const std::vector<double>& keys, const std::vector<uint64_t>& amounts,
                  uint64_t target) {
  const int64_t size = candidates.size();
  target = std::max<uint64_t>(target, 1);
  std::vector<char> kept(static_cast<size_t>(size), 0);
  std::vector<uint32_t> edge;
  uint64_t have = 0;
  if (size <= SORTED_AT_ONCE) {
    edge.resize(static_cast<size_t>(size));
    std::iota(edge.begin(), edge.end(), 0);
  } else {
    // Only the bucket in which the target is reached has to be sorted.
    const auto [low, high] = std::minmax_element(keys.begin(), keys.end());
    const double first = *low, width = *high > *low ? (BUCKETS - 1) / (*high - *low) : 0.0;
    std::vector<uint16_t> bucket(static_cast<size_t>(size));
    std::vector<uint64_t> filled(BUCKETS, 0);
    for (size_t i = 0; i < bucket.size(); ++i) {
      bucket[i] = static_cast<uint16_t>((keys[i] - first) * width);
      filled[bucket[i]] += amount_of(amounts, static_cast<uint32_t>(i));
    }
    int64_t last = 0;
    while (last < BUCKETS - 1 && have + filled[static_cast<size_t>(last)] < target) have += filled[static_cast<size_t>(last++)];
    for (size_t i = 0; i < bucket.size(); ++i) {
      kept[i] = bucket[i] < last;
      if (bucket[i] == last) edge.push_back(static_cast<uint32_t>(i));
    }
  }
  const int64_t taken = take_sorted(edge, keys, amounts, have, target);
  for (int64_t i = 0; i < taken; ++i) kept[edge[static_cast<size_t>(i)]] = 1;
  keep_marked(candidates, kept);
}

uint32_t at_unit(const Candidates& candidates, uint64_t point) {
  for (size_t i = 0; i < candidates.ids.size(); ++i) {
    if (point < candidates.units[i]) return candidates.ids[i];
    point -= candidates.units[i];
  }
  return candidates.ids.back();
}

}  // namespace splice::sampling
