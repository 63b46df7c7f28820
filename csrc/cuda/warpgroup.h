// What kernels for Hopper are written in beside platform.h: products of warpgroups, which read shared memory themselves (wgmma),
// barriers in shared memory, barriers of some of a block's threads, registers that warpgroups lend each other.
//
// A product is asynchronous, and so are those that follow it:
//
//   open_products();                          // registers that were written are seen by the products that follow
//   multiply_group<64>(acc, a, b, keep);      // any number, in order; several may add to the same accumulators
//   close_products();                         // they are a group now
//   wait_products<0>();                       // for all groups but the latest 0: accumulators and shared memory are ours again
//
// Until then accumulators are neither read nor written, registers of `a` not written, and what the products read in shared memory
// stays as it is. Copies into shared memory, and stores, are seen by products once the thread that made them has waited for them, has
// called publish_shared(), and has met the readers at a barrier.
#pragma once

#include "platform.h"

#if defined(__CUDACC__)
#include "warpgroup_operations.h"
#else
#include "emulator/warpgroup.h"
#endif

namespace splice::cuda {

constexpr int WARPGROUP = 128;

// A matrix of bfloat16 that products read lies in panels of 64 columns: a row of a panel is 128 bytes, and its chunk c stands in place
// of chunk c xor (row mod 8). Panels begin at multiples of 1024 bytes and rows there at multiples of 8.
constexpr int PANEL_COLUMNS = 64, PANEL_CHUNKS = PANEL_COLUMNS * 2 / CHUNK_BYTES, PANEL_ALIGNMENT = 1024;

SPLICE_BOTH int panel_place(int row, int chunk) { return row * PANEL_CHUNKS + (chunk ^ (row & 7)); }

// Where a product finds an operand, so many chunks behind `start`: the descriptor of PTX ISA 9.7.15.5 with a swizzle of 128 bytes. What
// is further is added last, to half of it: operands from one start are one addition each.
SPLICE_DEVICE uint64_t operand_place(const void* start, int further, int leading_bytes, int stride_bytes) {
  const uint32_t low = (shared_address(start) >> 4 | static_cast<uint32_t>(leading_bytes >> 4) << 16) + static_cast<uint32_t>(further);
  return low | static_cast<uint64_t>(stride_bytes >> 4 | 1 << 30) << 32;
}

// Rows of a panel are rows (of a) or columns (of b) of the product, and the panel's columns are k: 16 of them from `step`·16 on.
SPLICE_DEVICE uint64_t rows_in(const Chunk* panel, int step) { return operand_place(panel, 2 * step, 16, PANEL_ALIGNMENT); }

// Rows of panels are k, 16 of them from `step`·16 on, and their columns are columns of b, of which every 64 have a panel of their own,
// so many bytes behind the one before.
SPLICE_DEVICE uint64_t columns_in(const Chunk* panel, int step, int panel_bytes) {
  return operand_place(panel, 16 * step * PANEL_CHUNKS, panel_bytes, PANEL_ALIGNMENT);
}

}  // namespace splice::cuda
