// A whole step of a Llama-family decoder in one call: the operations of splice_cpu.h in the order a model takes them, with the
// bits that calling them one by one gives. Activations are fp32.
#ifndef SPLICE_CPU_DECODER_H
#define SPLICE_CPU_DECODER_H

#include "splice_cpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// y = x·Wᵀ + bias, W packed [n, k]; bias may be NULL.
typedef struct {
  const void* packed;
  int dtype;
  int64_t n, k;
  const float* bias;
} splice_cpu_matrix;

// qkv: [(q_heads + 2·kv_heads)·head_dim, hidden]; output: [hidden, q_heads·head_dim]; gate_up: [2·intermediate, hidden];
// down: [hidden, intermediate]; norms: fp32 [hidden].
typedef struct {
  const float *input_norm, *mlp_norm;
  splice_cpu_matrix qkv, output, gate_up, down;
} splice_cpu_layer;

// embedding and head: [vocab, hidden], perhaps the same; cos_sin [positions, head_dim] as splice_cpu_rope_store has it.
typedef struct {
  splice_cpu_matrix embedding, head;
  const float *norm, *cos_sin;
  float eps, scale;  // scale: of the attention's scores
  int64_t q_heads, num_layers;
  int int8;  // whether quantised weights are multiplied with int8 activations
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
