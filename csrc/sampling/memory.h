// What a draw needs beside its row: kept from draw to draw, because fresh memory costs more than what is computed in it.
#pragma once

#include <stdint.h>

#include <vector>

#include "leading.h"
#include "passes.h"

namespace splice::sampling {

struct Memory {
  std::vector<float> largest;                    // one a block
  std::vector<uint64_t> units, block_units;      // one a token, in whole blocks; one a block
  std::vector<uint16_t> bucket;                  // as units
  std::vector<uint32_t> ids;                     // one a token, and one more
  std::vector<Item> items;

  // For rows of so many tokens.
  void reserve_row(int64_t size) { largest.resize(static_cast<size_t>(blocks_of(size))); }
  // And for shares of such a row.
  void reserve_shares(int64_t size) {
    const auto tokens = static_cast<size_t>(blocks_of(size) * BLOCK);
    block_units.resize(static_cast<size_t>(blocks_of(size)));
    units.resize(tokens);
    bucket.resize(tokens);
    ids.resize(tokens + 1);
  }
};

}  // namespace splice::sampling
