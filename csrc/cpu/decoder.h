// A whole step of a decoder in one call: the operations of splice_cpu.h in the order a model takes them, with the bits that
// calling them one by one gives.
#ifndef SPLICE_CPU_DECODER_H
#define SPLICE_CPU_DECODER_H

#include "splice_cpu.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SPLICE_CPU_MAX_PARTS = 3 };

// Some rows of a weight, packed in one type.
typedef struct {
  const void* packed;
  int dtype;
  int64_t n;
} splice_cpu_part;

// y = x·Wᵀ + bias, W [n, k]: its parts stacked by rows; bias may be NULL.
typedef struct {
  splice_cpu_part parts[SPLICE_CPU_MAX_PARTS];
  int num_parts;
  int64_t n, k;
  const float* bias;
} splice_cpu_matrix;

// A gated MLP. gate_up: [2·intermediate, hidden]; down: [hidden, intermediate].
typedef struct {
  splice_cpu_matrix gate_up, down;
  int activation;
} splice_cpu_mlp;

// Matrices of one shape and the same types, one after another: the first, and how many bytes on the next one's parts lie. Their
// biases are [count, n].
typedef struct {
  splice_cpu_matrix first;
  size_t bytes[SPLICE_CPU_MAX_PARTS];
} splice_cpu_stack;

// Every row goes through those of the MLPs that its routing chooses, and through `shared`, unless that is NULL. router:
// [num_experts, hidden].
typedef struct {
  splice_cpu_routing routing;
  splice_cpu_matrix router;
  splice_cpu_stack gate_up, down;
  int activation;
  const splice_cpu_mlp* shared;
} splice_cpu_experts;

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), absorbed: heads attend to the cached latents themselves. q_down:
// [q_rank, hidden], perhaps of no parts; q: [q_heads·(still + turning), q_rank or hidden]; kv_down: [rank + turning, hidden].
// Of every head, absorb: [rank, still] takes its query to the latents' side, expand: [value, rank] makes what it attended to a value.
typedef struct {
  splice_cpu_matrix q_down, q, kv_down;
  splice_cpu_stack absorb, expand;
  const float *q_norm, *kv_norm;  // [q_rank], [rank]
  int64_t still, turning, rank, value;
  float eps;  // of both norms
} splice_cpu_latent;

// qkv: [(q_heads + 2·kv_heads)·head_dim, hidden]; output: [hidden, q_heads·head_dim]. Vectors are fp32; NULL: the model has no
// such thing. With `experts` the layer has no mlp, and with `latent` no qkv; all layers have it or none.
typedef struct {
  splice_cpu_matrix qkv, output;
  splice_cpu_mlp mlp;
  const splice_cpu_experts* experts;
  const splice_cpu_latent* latent;
  const float *input_norm, *mlp_norm;                     // [hidden]
  const float *attention_output_norm, *mlp_output_norm;   // [hidden], of what joins the residual stream
  const float *q_norm, *k_norm;                           // [head_dim]
  const float* sinks;                                     // [q_heads]
  const float* cos_sin;                                   // [positions, rotary_dim], see splice_cpu_rope_store
  int64_t rotary_dim, q_heads, window;                    // window 0: none
  float scale, softcap;                                   // of the scores; softcap 0: none
} splice_cpu_layer;

// embedding and head: [vocab, hidden] of one part, perhaps the same.
typedef struct {
  splice_cpu_matrix embedding, head;
  const float* norm;
  float eps, embedding_scale, logit_softcap;  // logit_softcap 0: none
  int int8, bf16;                             // what weights are multiplied with, see splice_cpu_linear; at most one
  int64_t num_layers;
  const splice_cpu_layer* layers;
} splice_cpu_decoder;

// Rows of all sequences one after another: see splice_cpu_rope_store and splice_cpu_attention. logit_rows are row numbers.
typedef struct {
  int64_t rows, sequences, table_stride, num_logits;
  const int64_t *token_ids, *positions, *slots, *logit_rows;
  const int32_t *block_tables, *query_starts, *starts;
} splice_cpu_batch;

// Bytes of scratch, 64-byte aligned, that a step of so many rows needs.
size_t splice_cpu_decoder_scratch(const splice_cpu_decoder* model, int64_t rows);
// Writes K and V of every row into the cache and the logits [num_logits, vocab] of the rows asked for.
int splice_cpu_decode(splice_cpu* cpu, const splice_cpu_decoder* model, const splice_cpu_batch* batch, splice_cpu_kv kv,
                      void* scratch, float* logits);

#ifdef __cplusplus
}
#endif
#endif
