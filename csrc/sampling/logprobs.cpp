#include "logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "candidates.h"

namespace splice::sampling {

bool logprobs(const Passes& passes, const float* logits, int64_t size, uint32_t token, int64_t num_top, float* largest,
              Logprobs& out) {
  const bool numbers = passes.maxima(logits, size, largest);
  const float top = *std::max_element(largest, largest + blocks_of(size));
  if (!numbers || !std::isfinite(top)) return false;
  const Row row{passes, logits, size, largest, {top, 1.0}};
  const double log_total = std::log(passes.weight(logits, size, row.scale, largest));
  const auto log_of = [&](float logit) { return (static_cast<double>(logit) - row.scale.top) - log_total; };
  out.logprob = log_of(logits[token]);
  out.rank = passes.count_above(logits, size, logits[token], largest) + 1;
  out.top_ids.clear();
  out.top_logprobs.clear();
  num_top = std::min(num_top, size);
  if (num_top <= 0) return true;
  std::vector<uint32_t> ids(static_cast<size_t>(size) + 1);  // the pass writes one past the last it keeps
  const int64_t count = passes.at_least(logits, size, bound_of_largest(row, num_top), largest, ids.data());
  ids.resize(static_cast<size_t>(count));
  std::partial_sort(ids.begin(), ids.begin() + num_top, ids.end(), [&](uint32_t a, uint32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  out.top_ids.assign(ids.begin(), ids.begin() + num_top);
  for (const uint32_t id : out.top_ids) out.top_logprobs.push_back(log_of(logits[id]));
  return true;
}

}  // namespace splice::sampling
