// The C ABI of the CUDA kernels. Pointers are the device's unless said otherwise and are borrowed until the stream has passed the
// call; bfloat16 everywhere unless said otherwise; matrices are row major, and a `*_stride` counts elements from one row to the next.
//
// Promise of every function here: an output row is one fixed arithmetic over its own inputs. Its bits do not depend on how many
// rows stand beside it, on its place among them, or on how a sequence was cut into calls.
//
// Functions return SPLICE_CUDA_OK, or another code and a text for people in splice_cuda_error(). Nothing is launched after an
// argument was refused. A stream is a cudaStream_t; none of the functions waits for it.
//
// The same functions compiled without CUDA run in an emulator on memory of the CPU (emulator/emulator.h): for tests.
#ifndef SPLICE_CUDA_H
#define SPLICE_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SPLICE_CUDA_ABI = 1 };
enum { SPLICE_CUDA_OK = 0, SPLICE_CUDA_INVALID = 1, SPLICE_CUDA_UNSUPPORTED = 2, SPLICE_CUDA_FAILED = 3 };

int splice_cuda_abi(void);
// 1 where kernels run in the emulator.
int splice_cuda_emulated(void);
// Why the calling thread's last function that failed did; valid until the next that fails.
const char* splice_cuda_error(void);

// y = x / sqrt(mean(x²) + eps) · weight, by rows of `size`, a multiple of 8 and at most 32768. With `residual` (contiguous):
// residual += x first, rounded, and the norm is of the sum. A bfloat16 weight multiplies the rounded quotient, a float32 one the
// quotient itself.
typedef struct {
  void* y;
  const void* x;
  void* residual;
  const void* weight;
  int64_t rows, size, x_stride;
  int32_t weight_is_float32;
  float eps;
} splice_cuda_norm;
int splice_cuda_rms_norm(const splice_cuda_norm* args, void* stream);

// y[rows, size] = activation(x[:, 0:size], x[:, size:2·size]); size is a multiple of 8.
enum { SPLICE_CUDA_SILU = 0, SPLICE_CUDA_GELU_TANH = 1, SPLICE_CUDA_SWIGLU_OAI = 2 };
typedef struct {
  void* y;
  const void* x;
  int64_t rows, size, x_stride;
  int32_t activation;
} splice_cuda_gate;
int splice_cuda_gated_mul(const splice_cuda_gate* args, void* stream);

// The paged cache `[blocks, layers, 2, kv_heads, block_tokens, head_dim]`; block_tokens is a power of two, 16 to 256.
typedef struct {
  void* data;
  int64_t layers, kv_heads, block_tokens, head_dim;
} splice_cuda_kv;

// Norms of heads where `q_norm` and `k_norm` are given ([head_dim], as in splice_cuda_norm), then the rotation of i with
// i + rotary_dim / 2 by row positions[i] of cos_sin `[positions, rotary_dim]` float32; q goes to `out` [tokens, q_heads, head_dim],
// k and v into the cache at slots[i] = block · block_tokens + offset; a negative slot is not stored. rotary_dim is a multiple of 4.
typedef struct {
  void* out;
  const void *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  const void *q_norm, *k_norm;
  const float* cos_sin;
  const int64_t *positions, *slots;
  int64_t tokens, q_heads, rotary_dim, layer;
  splice_cuda_kv kv;
  int32_t norm_is_float32;
  float eps;
} splice_cuda_rope;
int splice_cuda_rope_store(const splice_cuda_rope* args, void* stream);

// Causal attention over the paged cache. Rows query_starts[s] to query_starts[s + 1] belong to sequence s, the first of them at
// position starts[s]; its blocks are row s of block_tables `[sequences, table_stride]`. A query sees `window` positions, its own
// included (0: all); scores are q·k·scale, then softcap·tanh(score / softcap) unless softcap is 0; sinks `[q_heads]` float32 or NULL.
// `max_context` and `max_query` bound positions + 1 and rows of any one sequence: they size the launch and nothing else.
typedef struct {
  void* out;      // [rows, q_heads, head_dim]
  const void* q;  // the same
  splice_cuda_kv kv;
  const int32_t *block_tables, *query_starts, *starts;
  const float* sinks;
  void* workspace;  // splice_cuda_decode_workspace bytes; of splice_cuda_decode_attention only
  int64_t layer, table_stride, rows, sequences, q_heads, window, max_context, max_query;
  float scale, softcap;
} splice_cuda_attention;
// For few rows a sequence: split over the keys. head_dim 64, 128 or 256.
int splice_cuda_decode_attention(const splice_cuda_attention* args, void* stream);
int64_t splice_cuda_decode_workspace(int64_t rows, int64_t q_heads, int64_t head_dim, int64_t max_context);
// For many. The same bits. head_dim 64 or 128.
int splice_cuda_prefill_attention(const splice_cuda_attention* args, void* stream);

// One token a row, the one csrc/sampling draws from the same numbers. Arrays have one element a row.
typedef struct {
  const float* logits;
  int64_t rows, size, stride;  // size ≤ 524288
  const double *temperature, *min_p, *top_p;
  const int64_t* top_k;  // 0: off
  const uint64_t *seed, *choice, *position;
  int64_t* tokens;  // −1 where a logit is NaN or the largest is not finite
} splice_cuda_draws;
int splice_cuda_draw(const splice_cuda_draws* args, void* stream);

// Copies `blocks` blocks' layers and heads from one pool to another, each `[blocks, layers, planes, heads, span_bytes]`: gather
// and scatter where one of them is a buffer, and a change of layout where heads are divided otherwise. `ids` NULL: 0, 1, 2…
typedef struct {
  void* data;
  const int64_t* ids;
  int64_t layers, heads;            // of the pool
  int64_t first_layer, first_head;  // where the part that is copied begins
} splice_cuda_pool;
typedef struct {
  splice_cuda_pool to, from;
  int64_t blocks, layers, planes, heads, span_bytes;  // what is copied; span_bytes is a multiple of 16
} splice_cuda_copy;
int splice_cuda_kv_copy(const splice_cuda_copy* args, void* stream);

// y[m, n] = x[m, k]·Wᵀ (+ bias[n]), W [n, k]; y in bfloat16 or float32. k and n are multiples of 8, rows aligned to 16 bytes.
// Each output is one chain over k in ascending order: no split of k. `tile` chooses among the tiles of the kernel, 0 to
// splice_cuda_gemm_tiles() - 1.
typedef struct {
  void* y;
  const void *x, *w, *bias;
  int64_t m, n, k, x_stride, w_stride, y_stride;
  int32_t y_is_float32, tile;
} splice_cuda_gemm;
int splice_cuda_gemm_sm80(const splice_cuda_gemm* args, void* stream);
int splice_cuda_gemm_sm90(const splice_cuda_gemm* args, void* stream);

// sums[i], 16 bytes each, becomes the digest of block ids[i] (NULL: i) of a pool of blocks of block_bytes, a multiple of 16: the one
// kvtransfer/kv_checksum.py defines. `workspace` has splice_cuda_kv_checksum_workspace bytes.
typedef struct {
  void* sums;
  const void* data;
  const int64_t* ids;
  void* workspace;
  int64_t blocks, block_bytes;
} splice_cuda_checksum;
int splice_cuda_kv_checksum(const splice_cuda_checksum* args, void* stream);
int64_t splice_cuda_kv_checksum_workspace(int64_t blocks, int64_t block_bytes);

// splice_cuda_rope_store, and the key and value of row i are stored a second time at peer_slots[i] of the cache of the same form at
// peers[i], another process's memory mapped here, unless that is 0 or the slot negative. A row without a slot is stored nowhere.
typedef struct {
  splice_cuda_rope rope;
  const int64_t *peers, *peer_slots;
} splice_cuda_push;
int splice_cuda_rope_push(const splice_cuda_push* args, void* stream);

#ifdef __cplusplus
}
#endif
#endif
