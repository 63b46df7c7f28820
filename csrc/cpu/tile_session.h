// The shape of a thread's AMX tiles while it works on a product. Included for AMX only.
#pragma once

#include <stdint.h>

#include "vec.h"

namespace {

// INT8: tiles 0 and 1 are 16 rows × 64 bytes of sums, 2 and 3 16 × 32 of activations, 4 and 5 8 × 64 of weights: 32 depths.
// BF16: all eight are 16 × 64: four of sums, two of activations, two of weights, 32 depths.
enum class TileShape { NONE, INT8, BF16 };

class TileSession {
 public:
  explicit TileSession(TileShape shape) : open_(shape != TileShape::NONE) {
    if (!open_) return;
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } config = {};
    static_assert(sizeof config == 64);
    config.palette = 1;
    for (int tile = 0; tile < (shape == TileShape::INT8 ? 6 : 8); ++tile) {
      const bool activations = shape == TileShape::INT8 && tile / 2 == 1, weights = shape == TileShape::INT8 && tile / 2 == 2;
      config.rows[tile] = weights ? 8 : 16;
      config.bytes[tile] = activations ? 32 : 64;
    }
    // gcc 12 declares that the instruction reads 8 bytes, and would drop the stores to the others.
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  // Released at once, so that a switch of threads has no tiles to save and nobody finds a configuration not his own.
  ~TileSession() {
    if (open_) _tile_release();
  }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

 private:
  bool open_;
};

}  // namespace
