// The rows of a step whose logits are wanted: what the last layer makes of the others is read by nobody, only what it caches.
#pragma once

#include "decoder_buffers.h"

namespace splice::cpu {

// Where every sequence's wanted rows are its last ones, finds the queries that are left: `query_starts` [sequences + 1] and
// `starts` [sequences], as a batch has them.
inline bool last_queries(const splice_cpu_batch& batch, int32_t* query_starts, int32_t* starts) {
  if (batch.sequences > batch.rows) return false;
  int64_t found = 0;
  query_starts[0] = 0;
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int64_t end = batch.query_starts[s + 1], before = found;
    while (found < batch.num_logits && batch.logit_rows[found] < end) ++found;
    const int64_t first = end - (found - before);
    if (found > before && batch.logit_rows[before] != first) return false;
    query_starts[s + 1] = static_cast<int32_t>(found);
    starts[s] = batch.starts[s] + static_cast<int32_t>(first - batch.query_starts[s]);
  }
  return true;
}

// Moves wanted rows of `width` elements to the front.
template <class T>
void keep_wanted(const splice_cpu_batch& batch, T* rows, int64_t width) {
  for (int64_t i = 0; i < batch.num_logits; ++i)
    if (batch.logit_rows[i] != i)  // a row never goes to where one after it came from
      __builtin_memcpy(rows + i * width, rows + batch.logit_rows[i] * width, sizeof(T) * static_cast<size_t>(width));
}

}  // namespace splice::cpu
