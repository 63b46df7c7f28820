// The table of kernels that each instruction set provides. Every entry does one thread's share: work items first..last.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "splice_cpu.h"

namespace splice::cpu {

struct LinearArgs {
  float* y;
  int64_t y_stride;
  const float* x;
  int64_t x_stride;
  const void* packed;
  int dtype;
  const float* bias;
  int64_t m, n, k;
};

struct NormArgs {
  float* y;
  const float* x;
  int64_t x_stride;
  float* residual;
  const void* weight;
  int weight_dtype;
  float eps;
  int64_t size;
};

struct SiluArgs {
  float* y;
  const float* x;
  int64_t x_stride, size;
};

struct RopeArgs {
  float* out;
  const float* q;
  int64_t q_stride;
  const float* k;
  int64_t k_stride;
  const float* v;
  int64_t v_stride;
  const float* cos_sin;
  int64_t rotary_dim;
  const int64_t *positions, *slots;
  int64_t q_heads;
  splice_cpu_kv kv;
  int64_t layer;
};

struct AttentionArgs {
  float* out;
  const float* q;
  int64_t q_stride;
  splice_cpu_kv kv;
  int64_t layer;
  const int32_t* block_tables;
  int64_t table_stride;
  const int32_t *query_starts, *starts;
  int64_t sequences, q_heads;
  float scale;
};

// Query tokens that share one reading of a KV block.
constexpr int64_t ATTENTION_QUERY_TILE = 16;

struct Kernels {
  void (*linear)(const LinearArgs&, int64_t first_panel, int64_t last_panel, float* scratch);
  void (*rms_norm)(const NormArgs&, int64_t first_row, int64_t last_row);
  void (*silu_mul)(const SiluArgs&, int64_t first_row, int64_t last_row);
  void (*rope_store)(const RopeArgs&, int64_t first_token, int64_t last_token);
  void (*attention)(const AttentionArgs&, int64_t sequence, int64_t head, int64_t first_query, int64_t last_query,
                    float* scratch);
  size_t (*linear_scratch)();
  size_t (*attention_scratch)(const AttentionArgs&);
};

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace splice::cpu
