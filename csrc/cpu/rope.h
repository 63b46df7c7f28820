// Rotary embedding of q, and of k on its way into the paged cache, with v beside it; where a model has them, norms of heads first.
//
// Reads q, k, v and two table rows, writes q, k, v once: bound by memory, a few hundred nanoseconds a token.
// Source: Su et al., RoFormer (2021), in the halves order of GPT-NeoX: (a, b) → (a·cos − b·sin, b·cos + a·sin), where a and b
// are rotary_dim / 2 apart; each result is one product and one fused multiply-add.
#pragma once

#include "elementwise.h"
#include "kernels.h"
#include "kv_cache.h"
#include "scaled_head.h"

namespace {

using splice::cpu::RopeArgs;

SPLICE_INLINE void rotate(float* dst, const float* src, const float* cosines, const float* sines, int64_t half) {
  int64_t i = 0;
  for (; i + LANES <= half; i += LANES) {
    const F16 a = load(src + i), b = load(src + half + i), c = load(cosines + i), s = load(sines + i);
    store(dst + i, fma(a, c, sub(zero(), mul(b, s))));
    store(dst + half + i, fma(b, c, mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = src[i], b = src[half + i], c = cosines[i], s = sines[i];
    dst[i] = __builtin_fmaf(a, c, 0.0f - b * s);
    dst[half + i] = __builtin_fmaf(b, c, a * s);
  }
}

// One head's keys or values of one token into their plane of a block.
SPLICE_INLINE void store_kv(const splice_cpu_kv& kv, uint8_t* plane, int64_t offset, const float* src) {
  const int64_t dim = kv.head_dim;
  if (kv.dtype == SPLICE_CPU_F32) {
    float* dst = reinterpret_cast<float*>(plane) + offset * dim;
    for (int64_t i = 0; i < dim; ++i) dst[i] = src[i];
  } else if (kv.dtype == SPLICE_CPU_BF16) {
    uint16_t* dst = reinterpret_cast<uint16_t*>(plane) + offset * dim;
    for (int64_t i = 0; i < dim; ++i) dst[i] = to_bf16(src[i]);
  } else {
    float* scale = reinterpret_cast<float*>(plane + kv.block_tokens * dim) + offset;
    if (kv.dtype == SPLICE_CPU_INT8)
      scale_head(reinterpret_cast<int8_t*>(plane) + offset * dim, scale, src, dim);
    else
      scale_head(reinterpret_cast<Fp8*>(plane) + offset * dim, scale, src, dim);
  }
}

// The head's norm, if there is one, then its rotation.
SPLICE_INLINE void turn_head(const RopeArgs& args, float* dst, const float* src, const float* norm, int64_t token) {
  const int64_t dim = args.kv.head_dim, half = args.rotary_dim / 2;
  float normed[SPLICE_CPU_MAX_HEAD_DIM];
  if (norm) {
    norm_row({normed, nullptr, src, dim, nullptr, norm, SPLICE_CPU_F32, args.eps, dim}, 0);
    src = normed;
  }
  const float* cosines = args.cos_sin + args.positions[token] * args.rotary_dim;
  rotate(dst, src, cosines, cosines + half, half);
  for (int64_t i = args.rotary_dim; i < dim; ++i) dst[i] = src[i];
}

void rope_store(const RopeArgs& args, int64_t first, int64_t last) {
  const splice_cpu_kv& kv = args.kv;
  const int64_t dim = kv.head_dim, plane = splice::cpu::kv_plane_bytes(kv);
  float turned[SPLICE_CPU_MAX_HEAD_DIM];
  for (int64_t token = first; token < last; ++token) {
    for (int64_t head = 0; head < args.q_heads; ++head)
      turn_head(args, args.out + (token * args.q_heads + head) * dim, args.q + token * args.q_stride + head * dim, args.q_norm,
                token);
    if (args.slots[token] < 0) continue;
    const int64_t block = args.slots[token] / kv.block_tokens, offset = args.slots[token] % kv.block_tokens;
    for (int64_t head = 0; head < kv.kv_heads; ++head) {
      uint8_t* keys = splice::cpu::kv_head(kv, args.layer, block, head);
      turn_head(args, turned, args.k + token * args.k_stride + head * dim, args.k_norm, token);
      store_kv(kv, keys, offset, turned);
      store_kv(kv, keys + kv.kv_heads * plane, offset, args.v + token * args.v_stride + head * dim);
    }
  }
}

}  // namespace
