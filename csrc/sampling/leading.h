// The shortest leading part of some items, found without sorting more than a few of them.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <vector>

namespace splice::sampling {

struct Item {
  double key;
  uint64_t amount;
  uint32_t id;
};

// Items in ascending id, ordered by rising key, ties by rising id. On top of `have`, those at the front are kept until their amounts
// reach `target`; `drop(item)` is told of each of the others. Items are cut into buckets of their keys; only the bucket in which the
// target is reached is looked at more closely, and what is left of it at last is sorted.
template <class Drop>
void keep_shortest(std::vector<Item>& items, uint64_t have, uint64_t target, const Drop& drop) {
  constexpr size_t SORTED_AT_ONCE = 128;
  constexpr int BUCKETS = 1024;
  const auto by_key = [](const Item& a, const Item& b) { return a.key < b.key; };
  while (items.size() > SORTED_AT_ONCE) {
    const auto [low, high] = std::minmax_element(items.begin(), items.end(), by_key);
    const double first = low->key, width = (BUCKETS - 1) / (high->key - first);
    if (!(high->key > first && width < 1e300)) break;  // all keys alike, or nearly so
    const auto bucket_of = [&](const Item& item) { return static_cast<int>((item.key - first) * width); };
    uint64_t filled[BUCKETS] = {};
    for (const Item& item : items) filled[bucket_of(item)] += item.amount;
    int last = 0;
    while (last < BUCKETS - 1 && have + filled[last] < target) have += filled[last++];
    size_t count = 0;
    for (const Item& item : items) {
      const int bucket = bucket_of(item);
      if (bucket > last) drop(item);
      if (bucket == last) items[count++] = item;
    }
    if (count == items.size()) break;
    items.resize(count);
  }
  if (!std::is_sorted(items.begin(), items.end(), by_key)) std::stable_sort(items.begin(), items.end(), by_key);
  for (const Item& item : items) {
    if (have >= target) drop(item);
    have += item.amount;
  }
}

}  // namespace splice::sampling
