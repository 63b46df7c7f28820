// What kernels for many rows keep of a fragment of them in registers while they walk over spans, and how it becomes results.
#pragma once

#include "attention_tile.h"

namespace splice::cuda {

// Of the spans that are done.
template <int fragments>
struct Gathered {
  float maximum[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {0.0f, 0.0f};
  float all[fragments][4] = {};

  // A span is done: its sums join the others, its state begins anew, and `add` is to follow with these shares.
  SPLICE_DEVICE void close_span(RowState& state, Shares (&shares)[2]) {
    add_threads(state);
    SPLICE_UNROLL
    for (int row = 0; row < 2; ++row) {
      shares[row] = joined(maximum[row], state.maximum[row]);
      maximum[row] = shares[row].maximum;
      total[row] = merged(total[row], state.total[row], shares[row]);
    }
    state = RowState();
  }

  SPLICE_DEVICE void add(const float (&acc)[fragments][4], const Shares (&shares)[2]) {
    SPLICE_UNROLL
    for (int i = 0; i < 4 * fragments; ++i) all[i / 4][i % 4] = merged(all[i / 4][i % 4], acc[i / 4][i % 4], shares[i % 4 / 2]);
  }

  // Writes what this thread has of rows first_row + lane / 4 and that + 8, dimensions from 8·first_fragment on.
  template <int head_dim>
  SPLICE_DEVICE void write(const QueryRows& rows, uint32_t first_row, int first_fragment) const {
    const splice_cuda_attention& args = rows.args;
    const int lane = thread_index() % WARP;
    SPLICE_UNROLL
    for (int row = 0; row < 2; ++row) {
      const uint32_t query = first_row + lane / 4 + 8 * row;
      if (query >= rows.count) continue;
      const int64_t place = rows.place(query);
      const Finish finish(maximum[row], total[row], args.sinks ? args.sinks + place % args.q_heads : nullptr);
      uint16_t* row_out = static_cast<uint16_t*>(args.out) + place * head_dim;
      auto* to = reinterpret_cast<uint32_t*>(row_out + first_fragment * FRAGMENT_COLUMNS) + lane % 4;
      SPLICE_UNROLL
      for (int fragment = 0; fragment < fragments; ++fragment)
        to[fragment * FRAGMENT_COLUMNS / 2] = to_bf16_pair(finish(all[fragment][2 * row]), finish(all[fragment][2 * row + 1]));
    }
  }
};

}  // namespace splice::cuda
