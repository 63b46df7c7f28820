// A row that its block keeps in registers becomes e4m3 codes and scales: see splice_cuda_codes.
//
// Largest magnitudes do not depend on the order in which they are found, and a code is made of its element and its scale alone.
#pragma once

#include "e4m3.h"
#include "launch.h"
#include "rows.h"

namespace splice::cuda {

constexpr int BLOCK_CHUNKS = 128 / CHUNK_ELEMENTS;  // with one scale, where they are of blocks: half a warp's
constexpr float LEAST_MAGNITUDE = 1e-10f;           // of a row or block, so that 448 over it is finite
// Room for two reductions of a block, a float a warp each.
constexpr size_t ROW_ROOM_BYTES = 2 * ROW_THREADS / WARP * sizeof(float);

// NaN where one of them is.
SPLICE_DEVICE float larger(float a, float b) { return a > b || a != a ? a : b; }

SPLICE_DEVICE float magnitude_of(const Chunk& chunk) {
  float largest = 0.0f;
  SPLICE_UNROLL
  for (int w = 0; w < 4; ++w) {
    largest = larger(low_of(chunk.word[w] & 0x7fff7fff), largest);
    largest = larger(high_of(chunk.word[w] & 0x7fff7fff), largest);
  }
  return largest;
}

// Of `lanes` neighbouring lanes, a power of two; each gets it.
template <int lanes>
SPLICE_DEVICE float largest_of_lanes(float value) {
  SPLICE_UNROLL
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = larger(value, from_lane_xor(value, mask));
  return value;
}

// Of a block's threads; `room` as block_sum has it.
SPLICE_DEVICE float largest_of_block(float value, float* room) {
  value = largest_of_lanes<WARP>(value);
  if (thread_index() % WARP == 0) room[thread_index() / WARP] = value;
  barrier();
  float largest = room[0];
  for (int warp = 1; warp < block_threads() / WARP; ++warp) largest = larger(largest, room[warp]);
  return largest;
}

struct alignas(8) Codes {
  uint32_t word[2];
};

SPLICE_DEVICE Codes coded(const Chunk& chunk, float inverse) {
  Codes codes;
  SPLICE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t first = chunk.word[2 * i], second = chunk.word[2 * i + 1];
    codes.word[i] = to_e4m3_pair(product(low_of(first), inverse), product(high_of(first), inverse)) |
                    to_e4m3_pair(product(low_of(second), inverse), product(high_of(second), inverse)) << 16;
  }
  return codes;
}

// kept[i] is chunk thread + i · threads of the row; those from `chunks` on are nobody's. It becomes rows place(0) to place(count() - 1) of
// `to`, but those below 0.
template <class Rows>
SPLICE_DEVICE void write_codes(const splice_cuda_codes& to, const Rows& rows, int64_t chunks, const Chunk (&kept)[ROW_KEPT], float* room) {
  float largest[ROW_KEPT], of_thread = 0.0f;
  SPLICE_UNROLL
  for (int i = 0; i < ROW_KEPT; ++i) {
    const int64_t at = thread_index() + static_cast<int64_t>(i) * block_threads();
    largest[i] = at < chunks ? magnitude_of(kept[i]) : 0.0f;
    of_thread = larger(of_thread, largest[i]);
  }
  float inverse = 1.0f, row_scale = 0.0f;
  if (to.scaling == SPLICE_CUDA_TENSOR) inverse = quotient(1.0f, to.scales[0]);
  if (to.scaling == SPLICE_CUDA_ROWS) {
    const float most = larger(largest_of_block(of_thread, room), LEAST_MAGNITUDE);
    inverse = quotient(E4M3_LARGEST, most);
    row_scale = quotient(most, E4M3_LARGEST);
  }
  Codes made[ROW_KEPT];
  SPLICE_UNROLL
  for (int i = 0; i < ROW_KEPT; ++i) {
    const int64_t at = thread_index() + static_cast<int64_t>(i) * block_threads();
    if (to.scaling == SPLICE_CUDA_BLOCKS) {
      const float most = larger(largest_of_lanes<BLOCK_CHUNKS>(largest[i]), LEAST_MAGNITUDE);
      inverse = quotient(E4M3_LARGEST, most);
      largest[i] = quotient(most, E4M3_LARGEST);
    }
    if (at < chunks) made[i] = coded(kept[i], inverse);
  }
  for (int64_t r = 0; r < rows.count(); ++r) {
    const int64_t row = rows.place(r);
    if (row < 0) continue;
    if (to.scaling == SPLICE_CUDA_ROWS && thread_index() == 0) to.scales[row] = row_scale;
    auto* codes = static_cast<Codes*>(to.codes) + row * chunks;
    SPLICE_UNROLL
    for (int i = 0; i < ROW_KEPT; ++i) {
      const int64_t at = thread_index() + static_cast<int64_t>(i) * block_threads();
      if (at >= chunks) break;
      codes[at] = made[i];
      if (to.scaling == SPLICE_CUDA_BLOCKS && at % BLOCK_CHUNKS == 0) to.scales[at / BLOCK_CHUNKS * to.scale_stride + row] = largest[i];
    }
  }
}

// The same, row `row` of `to`.
SPLICE_DEVICE void write_codes(const splice_cuda_codes& to, int64_t row, int64_t chunks, const Chunk (&kept)[ROW_KEPT], float* room) {
  struct {
    int64_t row;
    SPLICE_DEVICE int64_t count() const { return 1; }
    SPLICE_DEVICE int64_t place(int64_t) const { return row; }
  } one{row};
  write_codes(to, one, chunks, kept, room);
}

inline int check_codes(const char* name, const splice_cuda_codes& to, int64_t rows, int64_t size) {
  if (to.scaling < SPLICE_CUDA_TENSOR || to.scaling > SPLICE_CUDA_BLOCKS)
    return fail(SPLICE_CUDA_INVALID, "%s: scaling %d, expected 0 to 2", name, to.scaling);
  const int64_t unit = to.scaling == SPLICE_CUDA_BLOCKS ? BLOCK_CHUNKS * CHUNK_ELEMENTS : 2 * CHUNK_ELEMENTS;
  if (size % unit || size > MAX_ROW_SIZE)
    return fail(SPLICE_CUDA_INVALID, "%s: rows of %lld, expected a multiple of %lld, at most %d", name, static_cast<long long>(size),
                static_cast<long long>(unit), MAX_ROW_SIZE);
  if (to.scaling == SPLICE_CUDA_BLOCKS && (to.scale_stride < rows || to.scale_stride % 4))
    return fail(SPLICE_CUDA_INVALID, "%s: scale_stride %lld, expected a multiple of 4, at least the rows", name,
                static_cast<long long>(to.scale_stride));
  if (rows > 0 && (!aligned(to.codes) || !to.scales)) return fail(SPLICE_CUDA_INVALID, "%s: codes aligned to 16 bytes, and scales, are needed", name);
  return SPLICE_CUDA_OK;
}

}  // namespace splice::cuda
