// The C ABI of the CPU kernels: the forward pass of a paged transformer in fp32 arithmetic, its products with quantised weights
// in int8 or bf16 if so wished.
//
// Promise, kept by every function here: each output element is one fixed chain of IEEE-754 fp32 operations (and exact integer ones). Its bits do not
// depend on the number of rows in the call, on the row's place among them, on how a prompt was cut into chunks, on the number
// of threads, or on the instruction set that was chosen; but for bf16 weights with bf16 activations, which AMX sums in an order of
// its own (bf16_tiles.h).
//
// Pointers are borrowed for the length of the call. Matrices are row major; a `*_stride` counts elements from one row to the
// next. Functions return SPLICE_CPU_OK or a code below; arguments are checked by the caller's binding, not here.
#ifndef SPLICE_CPU_H
#define SPLICE_CPU_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SPLICE_CPU_OK = 0, SPLICE_CPU_UNSUPPORTED = 1, SPLICE_CPU_NO_MEMORY = 2 };
// From the least to the best.
enum {
  SPLICE_CPU_ISA_BEST = -1,
  SPLICE_CPU_ISA_PORTABLE = 0,
  SPLICE_CPU_ISA_AVX2 = 1,
  SPLICE_CPU_ISA_AVX_VNNI = 2,
  SPLICE_CPU_ISA_AVX512 = 3,
  SPLICE_CPU_ISA_AVX512_VNNI = 4,
  SPLICE_CPU_ISA_AMX = 5
};
// Of tensors: the first two. Of packed weights: all; the quantised ones as GGUF files have them, k a multiple of 32 or, in
// K-quants, of 256.
enum {
  SPLICE_CPU_F32 = 0,
  SPLICE_CPU_BF16 = 1,
  SPLICE_CPU_Q4_0 = 2,
  SPLICE_CPU_Q4_1 = 3,
  SPLICE_CPU_Q5_0 = 4,
  SPLICE_CPU_Q5_1 = 5,
  SPLICE_CPU_Q8_0 = 6,
  SPLICE_CPU_Q4_K = 7,
  SPLICE_CPU_Q5_K = 8,
  SPLICE_CPU_Q6_K = 9,
  SPLICE_CPU_MXFP4 = 10,
  SPLICE_CPU_INT8 = 11,  // of caches only, as the next
  SPLICE_CPU_FP8 = 12    // E4M3
};
enum { SPLICE_CPU_PANEL = 16, SPLICE_CPU_MAX_HEAD_DIM = 1024 };

// An instruction set and a pool of threads. Calls on one context are serialised.
typedef struct splice_cpu splice_cpu;

int splice_cpu_isa_supported(int isa);
int splice_cpu_create(int isa, int num_threads, splice_cpu** out);
void splice_cpu_destroy(splice_cpu* cpu);
int splice_cpu_isa(const splice_cpu* cpu);
// Chooses again; what is packed stays as it is, being the same for all.
int splice_cpu_set_isa(splice_cpu* cpu, int isa);
int splice_cpu_num_threads(const splice_cpu* cpu);
int splice_cpu_set_num_threads(splice_cpu* cpu, int num_threads);

// Packed weights of y = x·Wᵀ: panels of 16 output columns, `[ceil(n/16)][k][16]` fp32, or `[ceil(n/16)][ceil(k/2)][16]` pairs
// of bf16 (even k in the low half), or quantised blocks (quant_layout.h). Missing columns are zero. `dst` must be 64-byte aligned.
size_t splice_cpu_packed_bytes(int64_t n, int64_t k, int dtype);
// Writes `rows` rows of the row-major [rows, k] matrix `src` as output columns first..first+rows of the packed matrix.
// fp32 to bf16 rounds to nearest even; bf16 to fp32 is exact; quantised rows go into the same type or into fp32.
void splice_cpu_pack(void* dst, int dst_dtype, int64_t k, int64_t first, int64_t rows, const void* src, int src_dtype);
// out[i, :] = row ids[i] of the packed matrix, as fp32: an embedding tied to the output head needs no second copy.
void splice_cpu_packed_rows(const void* packed, int dtype, int64_t k, const int64_t* ids, int64_t count, float* out);

// What weights are multiplied with. F32: x as it is; a quantised weight counts as its fp32 value, with the bits the same weights in
// fp32 give. INT8: under quantised weights x is quantised to 8 bits in blocks of 32 and multiplied exactly (int8_rows.h, int8_linear.h);
// other weights do as with F32. BF16: x is rounded to bf16, and so is the fp32 value of a quantised weight; weights in fp32 stay that.
enum { SPLICE_CPU_ACTIVATIONS_F32 = 0, SPLICE_CPU_ACTIVATIONS_INT8 = 1, SPLICE_CPU_ACTIVATIONS_BF16 = 2 };

// y[m, n] = x[m, k] · Wᵀ (+ bias[n] unless NULL).
int splice_cpu_linear(splice_cpu* cpu, float* y, int64_t y_stride, const float* x, int64_t x_stride, const void* packed,
                      int dtype, int activations, const float* bias, int64_t m, int64_t n, int64_t k);

// y = x / sqrt(mean(x²) + eps) · weight, by rows. With `residual` (same shape as x, contiguous): residual += x first, and the
// norm is of the sum.
int splice_cpu_rms_norm(splice_cpu* cpu, float* y, const float* x, int64_t x_stride, float* residual, const void* weight,
                        int weight_dtype, float eps, int64_t rows, int64_t size);

// Of a gate: x / (1 + e^-x), or GELU by its tanh formula; y[m, size] = activation(x[m, 0:size]) · x[m, size:2·size]. GPT-OSS's
// clamped one has x at most 7 and the other side within ±7: y = x / (1 + e^-1.702x) · (other + 1).
enum { SPLICE_CPU_SILU = 0, SPLICE_CPU_GELU_TANH = 1, SPLICE_CPU_SWIGLU_OAI = 2 };
int splice_cpu_gated_mul(splice_cpu* cpu, float* y, const float* x, int64_t x_stride, int activation, int64_t rows,
                         int64_t size);

// The paged cache `[blocks, layers, 2, kv_heads, block_tokens, head_dim]`; head_dim ≤ SPLICE_CPU_MAX_HEAD_DIM. With
// SPLICE_CPU_INT8 and SPLICE_CPU_FP8 every `[block_tokens, head_dim]` is followed by the fp32 scales of its tokens, and head_dim is a
// multiple of 4.
typedef struct {
  void* data;
  int dtype;
  int64_t layers, kv_heads, block_tokens, head_dim;
} splice_cpu_kv;

// Writes the rotated q to `out` [tokens, q_heads, head_dim] (may be q itself), and the rotated k and v into the cache. Rotation
// is of halves (GPT-NeoX order) over the first `rotary_dim` elements with row positions[i] of cos_sin
// `[positions, rotary_dim]`: cosines, then sines. Token i goes to block slots[i] / block_tokens, offset
// slots[i] % block_tokens; a negative slot is not stored. q is [tokens, q_heads, head_dim], k and v
// [tokens, kv_heads, head_dim]; tokens are *_stride elements apart.
int splice_cpu_rope_store(splice_cpu* cpu, float* out, const float* q, int64_t q_stride, const float* k, int64_t k_stride,
                          const float* v, int64_t v_stride, const float* cos_sin, int64_t rotary_dim,
                          const int64_t* positions, const int64_t* slots, int64_t tokens, int64_t q_heads,
                          splice_cpu_kv kv, int64_t layer);

// Causal attention over the paged cache. Sequence s owns query rows query_starts[s]..query_starts[s+1], the first of them at
// absolute position starts[s]; its block table is row s of block_tables `[sequences, table_stride]`. With a `window` > 0 a query
// sees so many positions, its own included; with a `softcap` > 0 scores become softcap·tanh(score / softcap); `sinks` [q_heads]
// (or NULL) holds one more score a head, which has no value.
int splice_cpu_attention(splice_cpu* cpu, float* out, const float* q, int64_t q_stride, splice_cpu_kv kv, int64_t layer,
                         const int32_t* block_tables, int64_t table_stride, const int32_t* query_starts,
                         const int32_t* starts, int64_t sequences, int64_t q_heads, float scale, int64_t window,
                         float softcap, const float* sinks);

// As splice_cpu_attention over a cache of latents, `[blocks, layers, 1, 1, block_tokens, rank + rope]` in fp32 or bf16: a row is the
// key of every head, its first `rank` elements the value. q is [rows, q_heads, rank + rope], out [rows, q_heads, rank].
int splice_cpu_latent_attention(splice_cpu* cpu, float* out, const float* q, splice_cpu_kv kv, int64_t layer,
                                const int32_t* block_tables, int64_t table_stride, const int32_t* query_starts,
                                const int32_t* starts, int64_t sequences, int64_t q_heads, int64_t rank, float scale);

// What a router's logits are made into: softmax over all of them, softmax over the chosen ones, or each its own sigmoid.
enum { SPLICE_CPU_SOFTMAX = 0, SPLICE_CPU_SOFTMAX_OF_CHOSEN = 1, SPLICE_CPU_SIGMOID = 2 };
// What a group of experts is worth: its best score, or the sum of its two best.
enum { SPLICE_CPU_GROUP_MAX = 0, SPLICE_CPU_GROUP_TOP2_SUM = 1 };

// Which experts a row goes through: the top_k best by score + score_bias out of the top_groups best groups, the lower index first
// of two alike. Biases are [num_experts] or NULL; logit_bias joins the logits. top_k ≤ num_experts / num_groups · top_groups.
typedef struct {
  int64_t num_experts, top_k, num_groups, top_groups;
  int scores, group_score, normalise;
  float scale;
  const float *logit_bias, *score_bias;
} splice_cpu_routing;

// Of every row of logits [rows, num_experts] the chosen experts [rows, top_k], best first, and their weights: the scores without
// score_bias, divided by their sum in that order if so wished, times scale. A score that is NaN is chosen before any other.
int splice_cpu_route(splice_cpu* cpu, int64_t* experts, float* weights, const float* logits, const splice_cpu_routing* routing,
                     int64_t rows);

#ifdef __cplusplus
}
#endif
#endif
