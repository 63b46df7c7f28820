// Where things lie in the paged cache: see splice_cuda_kv.
#pragma once

#include "platform.h"
#include "splice_cuda.h"

namespace splice::cuda {

// Keys (plane 0) or values (plane 1) of one head and block: [block_tokens, head_dim].
SPLICE_BOTH uint16_t* kv_plane(const splice_cuda_kv& kv, int64_t layer, int64_t block, int64_t plane, int64_t head) {
  const int64_t planes = ((block * kv.layers + layer) * 2 + plane) * kv.kv_heads + head;
  return static_cast<uint16_t*>(kv.data) + planes * kv.block_tokens * kv.head_dim;
}

// log2 of block_tokens, or −1 where that is no size of a block.
inline int block_shift(int64_t block_tokens) {
  for (int shift = 4; shift <= 8; ++shift)
    if (block_tokens == int64_t{1} << shift) return shift;
  return -1;
}

}  // namespace splice::cuda
