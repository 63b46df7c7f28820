// Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <stdint.h>

namespace splice::sampling {

// The first word of the block with key (key0, key1) and counter (1, counter1, counter2, 0).
inline uint64_t philox(uint64_t key0, uint64_t key1, uint64_t counter1, uint64_t counter2) {
  uint64_t c0 = 1, c1 = counter1, c2 = counter2, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const unsigned __int128 first = static_cast<unsigned __int128>(0xD2E7470EE14C6C93ULL) * c0;
    const unsigned __int128 second = static_cast<unsigned __int128>(0xCA5A826395121157ULL) * c2;
    c0 = static_cast<uint64_t>(second >> 64) ^ c1 ^ key0;
    c1 = static_cast<uint64_t>(second);
    c2 = static_cast<uint64_t>(first >> 64) ^ c3 ^ key1;
    c3 = static_cast<uint64_t>(first);
    key0 += 0x9E3779B97F4A7C15ULL;
    key1 += 0xBB67AE8584CAA73BULL;
  }
  return c0;
}

}  // namespace splice::sampling
