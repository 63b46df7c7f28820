// What grouped products share: which tiles of rows and columns a block takes in turn, and how outputs are stored. A Tile has `rows`,
// `columns`, `column_warps`, and `warp_rows`, `warp_columns`, `row_fragments` and `column_fragments` of a warp.
#pragma once

#include "gate.h"
#include "launch.h"
#include "rows.h"

namespace splice::cuda {

constexpr int ABREAST = 8;  // tiles of rows that go through a tile of columns before the next one

// A tile of rows and one of columns.
template <class Tile, bool is_gated>
struct Work {
  // Of y, whose row is half as long where gate and up become one.
  static constexpr int outputs = is_gated ? Tile::columns / 2 : Tile::columns, warp_outputs = outputs / Tile::column_warps;
  const splice_cuda_grouped& args;
  int index, size, column_tiles, count;
  splice_cuda_tile tile;
  int first_output;

  SPLICE_DEVICE explicit Work(const splice_cuda_grouped& a)
      : args(a), index(static_cast<int>(block_x())), size(static_cast<int>(is_gated ? a.n / 2 : a.n)),
        column_tiles((size + outputs - 1) / outputs), count(*a.tile_count * column_tiles) {
    open();
  }
  SPLICE_DEVICE bool is_there() const { return index < count; }
  SPLICE_DEVICE void advance() {
    index += static_cast<int>(grid_x());
    open();
  }
  SPLICE_DEVICE void open() {
    if (!is_there()) return;
    const int group = index / (ABREAST * column_tiles), within = index - group * ABREAST * column_tiles;
    const int left = *args.tile_count - group * ABREAST, abreast = left < ABREAST ? left : ABREAST;
    tile = args.tiles[group * ABREAST + within % abreast];
    first_output = within / abreast * outputs;
  }
  // The row of W that column c of the tile is, or −1: a warp's columns are its gates and then the ups that go with them.
  SPLICE_DEVICE int weight_row(int column) const {
    const int warp = column / Tile::warp_columns, within = column % Tile::warp_columns;
    const int output = first_output + warp * warp_outputs + within % warp_outputs;
    return output >= size ? -1 : within < warp_outputs ? output : size + output;
  }
};

template <class Tile>
using Sums = float[Tile::row_fragments][Tile::column_fragments][4];

// A product and its bias as they would be stored.
SPLICE_DEVICE float rounded(float value, const uint16_t* bias, int at) {
  return from_bf16(to_bf16(bias ? sum(value, from_bf16(bias[at])) : value));
}

template <class Tile, bool is_gated>
SPLICE_DEVICE void store(const Work<Tile, is_gated>& work, int row_warp, int column_warp, const Sums<Tile>& sums) {
  constexpr int fragments = is_gated ? Tile::column_fragments / 2 : Tile::column_fragments;
  const splice_cuda_grouped& args = work.args;
  const int lane = thread_index() % WARP;
  const uint16_t* bias = args.bias ? static_cast<const uint16_t*>(args.bias) + static_cast<int64_t>(work.tile.expert) * args.n : nullptr;
  SPLICE_UNROLL
  for (int c = 0; c < fragments; ++c) {
    const int output = work.first_output + column_warp * Work<Tile, is_gated>::warp_outputs + c * 8 + lane % 4 * 2;
    if (output >= work.size) continue;
    SPLICE_UNROLL
    for (int r = 0; r < 2 * Tile::row_fragments; ++r) {
      const int row = row_warp * Tile::warp_rows + r * 8 + lane / 4;
      if (row >= work.tile.rows) continue;
      float pair[2];
      SPLICE_UNROLL
      for (int i = 0; i < 2; ++i) {
        pair[i] = rounded(sums[r / 2][c][r % 2 * 2 + i], bias, output + i);
        if constexpr (is_gated) {
          const float up = rounded(sums[r / 2][c + fragments][r % 2 * 2 + i], bias, work.size + output + i);
          pair[i] = gated(args.activation, pair[i], up);
        }
      }
      auto* y = static_cast<uint16_t*>(args.y) + (static_cast<int64_t>(work.tile.first) + row) * work.size + output;
      *reinterpret_cast<uint32_t*>(y) = to_bf16_pair(pair[0], pair[1]);
    }
  }
}

// How many multiprocessors the launch has to fill; two in the emulator, so that blocks take more than one pair.
inline int multiprocessors([[maybe_unused]] const char* name, int64_t& count) {
#if defined(__CUDACC__)
  int device = 0, found = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return failed(name, error);
  if (const cudaError_t error = cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device); error != cudaSuccess)
    return failed(name, error);
  count = found;
#else
  count = 2;
#endif
  return SPLICE_CUDA_OK;
}

}  // namespace splice::cuda
