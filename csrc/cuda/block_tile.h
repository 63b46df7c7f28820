// What tiles of products with quantised weights share, for every kind of rows (block_activations.h) and form of weights (block_form.h).
// Weights are the 16 rows of a matrix instruction, activations its 8 columns: in a fragment, thread 4·g + q has columns g and g + 8 of
// a panel and rows 2·q and 2·q + 1.
//
// What a row's chain of sums adds for a block depends on that block alone, so a block's dot products may be anybody's work; the chain
// runs through the blocks in ascending order in one thread. That is all that tiles have in common, and all that bits depend on.
#pragma once

#include "block_activations.h"
#include "launch.h"

namespace splice::cuda {

// Starts the copy of a panel's slice of weights by the lanes of a warp; what is beyond the last panel or slice is zeros.
template <class Form>
SPLICE_DEVICE void start_weights(const BlockArgs& args, int64_t panel, int slice, Chunk* to) {
  const int64_t slices = slices_of(args.k);
  const int lane = thread_index() % WARP;
  const bool valid = panel < panels_of(args.n) && slice < slices;
  // What does not depend on the slice comes first, so that it stays in registers.
  const Chunk* from = static_cast<const Chunk*>(args.w) + panel * slices * Form::slice_chunks + lane + int64_t{slice} * Form::slice_chunks;
  SPLICE_UNROLL
  for (int i = 0; i < Form::slice_chunks; i += WARP)
    if (i + WARP <= Form::slice_chunks || i + lane < Form::slice_chunks) start_copy(to + i + lane, from + i, valid);
}

// Starts the copy of a slice of `rows` rows by `threads` threads, this one being `thread` of them; rows past the last and depths past
// k are zeros.
template <class Rows, int rows, int threads>
SPLICE_DEVICE void start_rows(const BlockArgs& args, int64_t first_row, int slice, int thread, Chunk* to) {
  constexpr int step = threads / Rows::chunks;
  static_assert(threads % Rows::chunks == 0 && rows % step == 0);
  const int row = thread / Rows::chunks, chunk = thread % Rows::chunks, at = slice * Rows::chunks + chunk;
  const bool within = at * Rows::depths < args.k;
  SPLICE_UNROLL
  for (int i = 0; i < rows; i += step)
    start_copy(to + Rows::place(row + i, chunk), Rows::row_of(args, first_row + row + i) + at, within && first_row + row + i < args.m);
}

// Bias, rounding and the write. NaN has the bits that csrc/cpu's products give it.
SPLICE_DEVICE void finish(const BlockArgs& args, int64_t row, int64_t column, float value) {
  if (row >= args.m || column >= args.n) return;
  if (args.bias) {
    const float bias =
        args.bias_is_float32 ? static_cast<const float*>(args.bias)[column] : from_bf16(static_cast<const uint16_t*>(args.bias)[column]);
    value = sum(value, bias);
  }
  const int64_t place = row * args.y_stride + column;
  const bool is_number = value == value;
  if (args.y_is_float32)
    static_cast<float*>(args.y)[place] = is_number ? value : float_of_bits(0x7fc00000u);
  else
    static_cast<uint16_t*>(args.y)[place] = is_number ? to_bf16(value) : 0x7fc0;
}

constexpr int SHARED_BYTES = 99 << 10;  // all that a block may have on some GPUs

inline int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

}  // namespace splice::cuda
