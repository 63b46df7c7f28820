// Where things lie in the paged cache: see splice_cpu_kv.
#pragma once

#include "shared.h"
#include "splice_cpu.h"

namespace splice::cpu {

// Whether every token has an fp32 scale a head.
SPLICE_SHARED constexpr bool kv_is_scaled(int dtype) { return dtype == SPLICE_CPU_INT8 || dtype == SPLICE_CPU_FP8; }
SPLICE_SHARED constexpr int64_t kv_element_bytes(int dtype) {
  return dtype == SPLICE_CPU_F32 ? 4 : dtype == SPLICE_CPU_BF16 ? 2 : 1;
}

// Keys, or values, of one head and block: [block_tokens, head_dim], then in scaled types their fp32 scales [block_tokens].
SPLICE_SHARED int64_t kv_plane_bytes(const splice_cpu_kv& kv) {
  const int64_t scale = kv_is_scaled(kv.dtype) ? static_cast<int64_t>(sizeof(float)) : 0;
  return kv.block_tokens * (kv.head_dim * kv_element_bytes(kv.dtype) + scale);
}

// The keys of a head in a block; its values are kv_heads planes on.
SPLICE_SHARED uint8_t* kv_head(const splice_cpu_kv& kv, int64_t layer, int64_t block, int64_t head) {
  return static_cast<uint8_t*>(kv.data) + ((block * kv.layers + layer) * 2 * kv.kv_heads + head) * kv_plane_bytes(kv);
}

}  // namespace splice::cpu
