// The table of kernels that each instruction set provides. Every entry does a share of the work: items first..last.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "shared.h"
#include "splice_cpu.h"

namespace splice::cpu {

// 32 activations of a row. Byte 4·g + i of the quants is depth g + 8·i: the order of the groups in quant_layout.h.
struct Int8Block {
  int8_t quants[32];
  float scale;
  float scaled_sum;  // scale · sum, rounded once
  int32_t sum;       // of the quants
  int16_t half_sums[2];  // of depths 0..15 and 16..31
};
static_assert(sizeof(Int8Block) == 48);
constexpr int64_t INT8_DEPTH = 32;

struct QuantizeArgs {
  Int8Block* out;  // [rows][k / 32]
  const float* x;
  int64_t x_stride, k;
};

// What becomes of a product's columns.
enum class Epilogue {
  STORE,  // y = product
  ADD,    // y += product
  GATE,   // y = activation(product of the first half of the columns) · product of the second half; n a multiple of 64
};

struct LinearArgs {
  float* y;
  int64_t y_stride;
  Int8Block* y8;  // GATE only, instead of y: [m][n / 2 / 32]
  const float* x;
  int64_t x_stride;
  const Int8Block* x8;  // instead of x, for quantised weights: [m][k / 32]
  const void* packed;
  int dtype;
  const float* bias;
  int64_t m, n, k;
  Epilogue epilogue;
  int activation;  // of the gate
  bool bf16;       // x, and the values of quantised weights, are rounded to bf16 first
};
// Work items of a product: panels, or with GATE groups of 32 columns of either half.
constexpr int64_t GATE_COLUMNS = 32;
SPLICE_SHARED int64_t linear_items(const LinearArgs& args) {
  if (args.epilogue == Epilogue::GATE) return args.n / 2 / GATE_COLUMNS;
  return (args.n + SPLICE_CPU_PANEL - 1) / SPLICE_CPU_PANEL;
}

struct NormArgs {
  float* y;
  Int8Block* y8;  // instead of y; size a multiple of 32
  const float* x;
  int64_t x_stride;
  float* residual;
  const void* weight;
  int weight_dtype;
  float eps;
  int64_t size;
};

struct GateArgs {
  float* y;
  const float* x;
  int64_t x_stride;
  int activation;
  int64_t size;
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
  const float *q_norm, *k_norm;  // RMS norms of every head before rotation, [head_dim]; or null
  float eps;
};

struct AttentionArgs {
  float* out;
  Int8Block* out8;  // instead of out: [rows][q_heads · head_dim / 32]; a group's heads must fill whole blocks
  const float* q;
  int64_t q_stride;
  splice_cpu_kv kv;
  int64_t layer;
  const int32_t* block_tables;
  int64_t table_stride;
  const int32_t *query_starts, *starts;
  int64_t sequences, q_heads;
  float scale;
  int64_t window;  // 0: none
  float softcap;   // 0: none
  const float* sinks;
};

struct RouteArgs {
  int64_t* experts;  // [rows][top_k]
  float* weights;    // [rows][top_k]
  const float* logits;
  const splice_cpu_routing* routing;
};

struct CombineArgs {
  float* y;            // [rows][size]
  const float* parts;  // [rows · top_k][size]
  const int64_t* places;  // [rows][top_k]: which part each choice made
  const float* weights;   // [rows][top_k]
  const float* shared;    // [rows][size], or null
  int64_t top_k, size;
};

// Attention over latents, absorbed; the cache has one plane of one head, rows of rank + rope elements.
struct LatentArgs {
  float* out;      // [rows][q_heads][rank]
  const float* q;  // [rows][q_heads][rank + rope]
  splice_cpu_kv kv;
  int64_t layer;
  const int32_t* block_tables;
  int64_t table_stride;
  const int32_t *query_starts, *starts;
  int64_t sequences, q_heads, rank;
  float scale;
};
// What shares one reading of the cache: so many heads, of so many queries.
SPLICE_SHARED int64_t latent_heads(const LatentArgs& args) { return args.q_heads < 32 ? args.q_heads : 32; }
SPLICE_SHARED int64_t latent_queries(const LatentArgs& args) { return 64 / latent_heads(args); }

struct LatentStoreArgs {
  const float* down;  // [rows][rank + rope]: latent and key
  const float* norm;
  float eps;
  const float* cos_sin;
  const int64_t *positions, *slots;
  splice_cpu_kv kv;
  int64_t layer, rank;
};

struct LatentTurnArgs {
  float* out;      // [rows][q_heads][rank + turning]
  const float* q;  // [rows][q_heads][still + turning]
  const float* cos_sin;
  const int64_t* positions;
  int64_t q_heads, rank, still, turning;
};

// Query tokens that share one reading of a KV block.
constexpr int64_t ATTENTION_QUERY_TILE = 16;

struct Kernels {
  void (*quantize)(const QuantizeArgs&, int64_t first_row, int64_t last_row);
  void (*linear)(const LinearArgs&, int64_t first_item, int64_t last_item, float* scratch);
  void (*rms_norm)(const NormArgs&, int64_t first_row, int64_t last_row);
  void (*gated_mul)(const GateArgs&, int64_t first_row, int64_t last_row);
  // x = softcap·tanh(x / softcap)
  void (*cap)(float* x, int64_t count, float softcap);
  void (*rope_store)(const RopeArgs&, int64_t first_token, int64_t last_token);
  void (*attention)(const AttentionArgs&, int64_t sequence, int64_t head, int64_t first_query, int64_t last_query,
                    float* scratch);
  void (*route)(const RouteArgs&, int64_t first_row, int64_t last_row, float* scratch);
  // y = Σ weight · part over a row's choices in their order, then + shared.
  void (*combine)(const CombineArgs&, int64_t first_row, int64_t last_row);
  void (*latent_attention)(const LatentArgs&, int64_t sequence, int64_t first_head, int64_t last_head, int64_t first_query,
                           int64_t last_query, float* scratch);
  void (*store_latents)(const LatentStoreArgs&, int64_t first_token, int64_t last_token);
  void (*turn_queries)(const LatentTurnArgs&, int64_t first_token, int64_t last_token);
  // Floats of scratch that one thread needs.
  size_t (*linear_scratch)(const LinearArgs&);
  size_t (*attention_scratch)(const AttentionArgs&);
  size_t (*route_scratch)(const splice_cpu_routing&);
  size_t (*latent_scratch)(const LatentArgs&);
};

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512vnni_kernels();
const Kernels& amx_kernels();
#endif

}  // namespace splice::cpu
