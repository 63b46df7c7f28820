// AMX-TILE, AMX-INT8 and AMX-BF16 as far as the kernels use them, written after the operation sections of the Instruction Set
// Reference. What would raise #UD or #GP ends the process with a line that says what was wrong.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace emulation {

constexpr int TILES = 8, TILE_ROWS_MAX = 16, TILE_BYTES_MAX = 64;

struct Tile {
  int rows, bytes;
  uint8_t row[TILE_ROWS_MAX][TILE_BYTES_MAX];
};
struct TileFile {
  bool configured;
  Tile tile[TILES];
};
inline thread_local TileFile tile_file{};

[[noreturn]] inline void tile_fault(const char* what) {
  fprintf(stderr, "emulated AMX: %s\n", what);
  abort();
}
inline void tile_require(bool condition, const char* what) {
  if (!condition) tile_fault(what);
}
inline Tile& tile_at(int number) {
  tile_require(tile_file.configured, "tiles are used before they were configured");
  tile_require(number >= 0 && number < TILES, "there are eight tiles");
  Tile& tile = tile_file.tile[number];
  tile_require(tile.rows > 0 && tile.bytes > 0, "a tile is used that the configuration leaves out");
  return tile;
}

// 64 bytes: palette, start row, 14 reserved, 16 × 2 bytes a row, 16 × rows; tiles beyond the eighth must be 0.
inline void tile_loadconfig(const void* p) {
  uint8_t bytes[64];
  memcpy(bytes, p, sizeof bytes);
  tile_require(bytes[0] == 1, "palette 1 is the one there is");
  tile_require(bytes[1] == 0, "a start row is for interrupted loads");
  for (int i = 2; i < 16; ++i) tile_require(bytes[i] == 0, "reserved bytes of the configuration must be 0");
  TileFile file{};
  file.configured = true;
  for (int t = 0; t < 16; ++t) {
    uint16_t width;
    memcpy(&width, bytes + 16 + 2 * t, 2);
    const int rows = bytes[48 + t];
    tile_require(t < TILES || (width == 0 && rows == 0), "there are eight tiles to configure");
    tile_require(rows <= TILE_ROWS_MAX && width <= TILE_BYTES_MAX, "a tile has at most 16 rows of 64 bytes");
    tile_require((rows == 0) == (width == 0), "a tile has both rows and columns or neither");
    if (t < TILES) file.tile[t].rows = rows, file.tile[t].bytes = width;
  }
  tile_file = file;
}
inline void tile_release() { tile_file = TileFile{}; }

inline void tile_zero(int number) {
  Tile& tile = tile_at(number);
  memset(tile.row, 0, sizeof tile.row);
}
inline void tile_load(int number, const void* base, long stride) {
  Tile& tile = tile_at(number);
  memset(tile.row, 0, sizeof tile.row);
  for (int r = 0; r < tile.rows; ++r)
    memcpy(tile.row[r], static_cast<const uint8_t*>(base) + r * stride, static_cast<size_t>(tile.bytes));
}
inline void tile_store(int number, void* base, long stride) {
  const Tile& tile = tile_at(number);
  for (int r = 0; r < tile.rows; ++r)
    memcpy(static_cast<uint8_t*>(base) + r * stride, tile.row[r], static_cast<size_t>(tile.bytes));
}

// What every product asks of its three tiles.
inline void tile_check_product(int c, int a, int b) {
  tile_require(c != a && c != b && a != b, "a product needs three different tiles");
  const Tile &sum = tile_at(c), &left = tile_at(a), &right = tile_at(b);
  tile_require(sum.bytes % 4 == 0 && left.bytes % 4 == 0 && right.bytes % 4 == 0, "rows of a product are whole words");
  tile_require(sum.rows == left.rows, "a product has as many rows as its left side");
  tile_require(sum.bytes == right.bytes, "a product has as many columns as its right side");
  tile_require(left.bytes / 4 == right.rows, "the left side's words and the right side's rows differ in number");
}

// C[m][n] += Σ over words k and bytes i of A[m][4k + i] · B[k][4n + i], all signed; 32 bits that wrap.
inline void tile_dpbssd(int c, int a, int b) {
  tile_check_product(c, a, b);
  Tile& sum = tile_at(c);
  const Tile &left = tile_at(a), &right = tile_at(b);
  for (int m = 0; m < sum.rows; ++m)
    for (int k = 0; k < left.bytes / 4; ++k)
      for (int n = 0; n < sum.bytes / 4; ++n) {
        uint32_t word;
        memcpy(&word, sum.row[m] + 4 * n, 4);
        for (int i = 0; i < 4; ++i)
          word += static_cast<uint32_t>(static_cast<int8_t>(left.row[m][4 * k + i]) * static_cast<int8_t>(right.row[k][4 * n + i]));
        memcpy(sum.row[m] + 4 * n, &word, 4);
      }
}

// A denormal number counts as zero and becomes one; the sign stays.
inline float without_denormals(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  memcpy(&x, &bits, 4);
  return x;
}
inline float bf16_at(const uint8_t* p) {
  uint16_t half;
  memcpy(&half, p, 2);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  memcpy(&x, &bits, 4);
  return without_denormals(x);
}

// C[m][n] += (Σ over words k of A[m][2k]·B[k][2n]) + (Σ of A[m][2k + 1]·B[k][2n + 1]): two chains of fused operations, two sums.
inline void tile_dpbf16ps(int c, int a, int b) {
  tile_check_product(c, a, b);
  Tile& sum = tile_at(c);
  const Tile &left = tile_at(a), &right = tile_at(b);
  for (int m = 0; m < sum.rows; ++m)
    for (int n = 0; n < sum.bytes / 4; ++n) {
      float chain[2] = {0.0f, 0.0f}, value;
      for (int k = 0; k < left.bytes / 4; ++k)
        for (int i = 0; i < 2; ++i)
          chain[i] = without_denormals(
              __builtin_fmaf(bf16_at(left.row[m] + 4 * k + 2 * i), bf16_at(right.row[k] + 4 * n + 2 * i), chain[i]));
      memcpy(&value, sum.row[m] + 4 * n, 4);
      value = without_denormals(without_denormals(value) + without_denormals(chain[0] + chain[1]));
      memcpy(sum.row[m] + 4 * n, &value, 4);
    }
}

}  // namespace emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig emulation::tile_loadconfig
#define _tile_release emulation::tile_release
#define _tile_zero emulation::tile_zero
#define _tile_loadd emulation::tile_load
#define _tile_stored emulation::tile_store
#define _tile_dpbssd emulation::tile_dpbssd
#define _tile_dpbf16ps emulation::tile_dpbf16ps
