#include "candidates.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "leading.h"

namespace splice::sampling {

namespace {

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
  std::vector<Item> items(candidates.ids.size());
  for (size_t i = 0; i < items.size(); ++i)
    items[i] = {keys[i], amounts.empty() ? 1 : amounts[i], static_cast<uint32_t>(i)};
  std::vector<char> kept(items.size(), 1);
  keep_shortest(items, 0, std::max<uint64_t>(target, 1), [&](const Item& item) { kept[item.id] = 0; });
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
