// Sums over the elements of a row, in an order that the row's size alone decides.
#pragma once

#include "platform.h"

namespace splice::cuda {

constexpr int CHUNK_ELEMENTS = CHUNK_BYTES / 2;

// A row that its block keeps in registers: thread t of T has chunks t, t + T, … of 8 elements, T a function of the row's size alone.
constexpr int ROW_THREADS = 1024, ROW_KEPT = 4, MAX_ROW_SIZE = ROW_THREADS * ROW_KEPT * CHUNK_ELEMENTS;

inline int threads_for_row(int64_t size) {
  const int64_t chunks = size / CHUNK_ELEMENTS, whole = (chunks + WARP - 1) / WARP * WARP;
  return static_cast<int>(whole < ROW_THREADS ? whole : ROW_THREADS);
}

SPLICE_DEVICE float low_of(uint32_t pair) { return from_bf16(static_cast<uint16_t>(pair & 0xffff)); }
SPLICE_DEVICE float high_of(uint32_t pair) { return from_bf16(static_cast<uint16_t>(pair >> 16)); }

// Adds what the lanes hold, as a tree; every lane gets the sum.
SPLICE_DEVICE float warp_sum(float value) {
  SPLICE_UNROLL
  for (int mask = WARP / 2; mask > 0; mask /= 2) value = sum(value, from_lane_xor(value, mask));
  return value;
}

// Adds what the threads of a block hold: a tree in each warp, then the warps in order. `room` is one float a warp, in shared
// memory, and free again after the caller's next barrier.
SPLICE_DEVICE float block_sum(float value, float* room) {
  value = warp_sum(value);
  if (thread_index() % WARP == 0) room[thread_index() / WARP] = value;
  barrier();
  float total = room[0];
  for (int warp = 1; warp < block_threads() / WARP; ++warp) total = sum(total, room[warp]);
  return total;
}

}  // namespace splice::cuda
