// Rotary embedding of q in place, and of k on its way into the paged cache, with v beside it.
//
// Reads q, k, v and two table rows, writes q, k, v once: bound by memory, a few hundred nanoseconds a token.
// Source: Su et al., RoFormer (2021), in the halves order of GPT-NeoX: (a, b) → (a·cos − b·sin, b·cos + a·sin), where a and b
// are rotary_dim / 2 apart; each result is one product and one fused multiply-add.
#pragma once

#include "kernels.h"
#include "vec.h"

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

SPLICE_INLINE void store_kv(const splice_cpu_kv& kv, int64_t offset, const float* src) {
  if (kv.dtype == SPLICE_CPU_F32) {
    float* dst = static_cast<float*>(kv.data) + offset;
    for (int64_t i = 0; i < kv.head_dim; ++i) dst[i] = src[i];
  } else {
    uint16_t* dst = static_cast<uint16_t*>(kv.data) + offset;
    for (int64_t i = 0; i < kv.head_dim; ++i) dst[i] = to_bf16(src[i]);
  }
}

void rope_store(const RopeArgs& args, int64_t first, int64_t last) {
  const splice_cpu_kv& kv = args.kv;
  const int64_t half = args.rotary_dim / 2, dim = kv.head_dim;
  const int64_t plane = kv.block_tokens * dim;  // one head's keys, or values, of one block
  float rotated[SPLICE_CPU_MAX_HEAD_DIM];
  for (int64_t token = first; token < last; ++token) {
    const float* cosines = args.cos_sin + args.positions[token] * args.rotary_dim;
    const float* sines = cosines + half;
    for (int64_t head = 0; head < args.q_heads; ++head) {
      const float* q = args.q + token * args.q_stride + head * dim;
      float* out = args.out + (token * args.q_heads + head) * dim;
      rotate(out, q, cosines, sines, half);
      for (int64_t i = args.rotary_dim; i < dim; ++i) out[i] = q[i];
    }
    if (args.slots[token] < 0) continue;
    const int64_t block = args.slots[token] / kv.block_tokens, place = args.slots[token] % kv.block_tokens * dim;
    const int64_t keys = (block * kv.layers + args.layer) * 2 * kv.kv_heads * plane + place;
    const int64_t values = keys + kv.kv_heads * plane;
    for (int64_t head = 0; head < kv.kv_heads; ++head) {
      const float* k = args.k + token * args.k_stride + head * dim;
      rotate(rotated, k, cosines, sines, half);
      for (int64_t i = args.rotary_dim; i < dim; ++i) rotated[i] = k[i];
      store_kv(kv, keys + head * plane, rotated);
      store_kv(kv, values + head * plane, args.v + token * args.v_stride + head * dim);
    }
  }
}

}  // namespace
