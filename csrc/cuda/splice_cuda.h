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

enum { SPLICE_CUDA_ABI = 3 };
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
// For few rows a sequence: split over the keys. head_dim 64, 80, 96, 128 or 256.
int splice_cuda_decode_attention(const splice_cuda_attention* args, void* stream);
int64_t splice_cuda_decode_workspace(int64_t rows, int64_t q_heads, int64_t head_dim, int64_t max_context);
// For many. The same bits and dimensions.
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

// What the library was built from and for.
//
// A digest of csrc/cuda, 16 hexadecimal digits; `unknown` where the build did not say.
const char* splice_cuda_sources(void);
// The GPUs it has machine code (sm_90) or PTX (compute_80) for, separated by spaces; empty in the emulator.
const char* splice_cuda_targets(void);
// The CUDA runtime linked into it, as CUDART_VERSION (13000); a driver must know it. 0 in the emulator.
int splice_cuda_runtime(void);
// ---- FP8 ----
//
// Codes are e4m3: a sign, four bits of exponent, three of mantissa, no infinities, one NaN, 448 the largest (OCP 8-bit floating point
// specification; torch.float8_e4m3fn). A value is code · scale, scales are float32 and lie
// - TENSOR: one for all;
// - ROWS: one a row, contiguous;
// - BLOCKS: of x, one for 128 elements of a row, scales[(column / 128) · stride + row], the stride at least the rows and a multiple of
//   4; of a weight, one for 128 × 128 elements, [n / 128, k / 128] rounded up, contiguous.
enum { SPLICE_CUDA_TENSOR = 0, SPLICE_CUDA_ROWS = 1, SPLICE_CUDA_BLOCKS = 2 };

// Rows as codes `[rows, size]`, contiguous; size a multiple of 16, with BLOCKS of 128, at most 32768. A scale of TENSOR is read, the
// others are written: the largest magnitude, at least 1e-10, over 448. A code is x · (1 / scale) of TENSOR, x · (448 / largest) of
// the others, rounded to nearest even and held within ±448. A NaN makes a code NaN, and with ROWS and BLOCKS all that share its
// scale; so does an infinity.
typedef struct {
  void* codes;
  float* scales;
  int64_t scale_stride;  // of BLOCKS
  int32_t scaling;
} splice_cuda_codes;
typedef struct {
  splice_cuda_codes to;
  const void* x;
  int64_t rows, size, x_stride;
} splice_cuda_row_codes;
int splice_cuda_quantise_fp8(const splice_cuda_row_codes* args, void* stream);

// splice_cuda_rms_norm and splice_cuda_gated_mul whose rounded results become codes without a way through memory: the same codes and
// scales as one after the other. y may be NULL, and is not written then.
typedef struct {
  splice_cuda_norm norm;
  splice_cuda_codes to;
} splice_cuda_norm_codes;
int splice_cuda_rms_norm_fp8(const splice_cuda_norm_codes* args, void* stream);
typedef struct {
  splice_cuda_gate gate;
  splice_cuda_codes to;
} splice_cuda_gate_codes;
int splice_cuda_gated_mul_fp8(const splice_cuda_gate_codes* args, void* stream);

// y[m, n] = (x · its scales)·(W · its scales)ᵀ (+ bias[n]), codes W [n, k] and, but for gemm_fp8_weights, x [m, k]. k is a multiple of
// 16, n of 8, rows aligned to 16 bytes.
typedef struct {
  void* y;
  const void *x, *w, *bias;
  const float *x_scales, *w_scales;
  int64_t m, n, k, x_stride, w_stride, y_stride;
  int64_t x_scale_stride;  // of BLOCKS
  int32_t x_scaling, w_scaling, tile;
} splice_cuda_gemm_fp8;
// TENSOR or ROWS, x and W each its own. Tile 0 is for few rows, 1 for many: the same bits. Tiles 2 and 3, for many, have the same bits
// too, but other ones: they sum in the matrix units alone, which keep fewer bits of a sum than float32, and are faster.
int splice_cuda_gemm_fp8_sm90(const splice_cuda_gemm_fp8* args, void* stream);
// BLOCKS of both. Tile 0 is for few rows, 1 for many: the same bits.
int splice_cuda_gemm_fp8_blocks_sm90(const splice_cuda_gemm_fp8* args, void* stream);
// x in bfloat16 as it is (x_scales and x_scaling unused), any scaling of W. Tile 0 is for few rows, 1 for many: the same bits.
int splice_cuda_gemm_fp8_weights(const splice_cuda_gemm_fp8* args, void* stream);
// Quantised weights. See block_form.h for how a matrix lies in each form; engine/ops/cuda/block_pack.py makes them. Four, five and
// eight bits with fp16 scales, and minima; four and five with both as products, as ggml's K-quants have them; six with a scale for
// every 16 depths; five with powers of two; four with a scale and a zero point for every 128 depths.
enum {
  SPLICE_CUDA_BLOCK_4 = 0,
  SPLICE_CUDA_BLOCK_4_MINIMUM = 1,
  SPLICE_CUDA_BLOCK_4_SUPER = 2,
  SPLICE_CUDA_BLOCK_4_GROUPS = 3,
  SPLICE_CUDA_BLOCK_5 = 4,
  SPLICE_CUDA_BLOCK_5_MINIMUM = 5,
  SPLICE_CUDA_BLOCK_5_SUPER = 6,
  SPLICE_CUDA_BLOCK_5_POWERS = 7,
  SPLICE_CUDA_BLOCK_6_HALVES = 8,
  SPLICE_CUDA_BLOCK_8 = 9
};

// Rows x [rows, k], bfloat16 or float32, k a multiple of 32, as int8 with one scale per block of 32: quants [rows, k], and
// scales [2][rows][4·ceil(k/128)] float32: of blocks, then their scale times the sum of their quants; what fills up is not written.
typedef struct {
  int8_t* quants;
  float* scales;
  const void* x;
  int64_t rows, k, x_stride;
  int32_t x_is_float32;
} splice_cuda_quantise;
int splice_cuda_quantise_rows(const splice_cuda_quantise* args, void* stream);

// y[m, n] = x·Wᵀ (+ bias[n]). block_gemm: x as splice_cuda_quantise_rows left it, and the bits of csrc/cpu's products; all forms but
// groups. w4a16_gemm: x in bfloat16, rows aligned to 16 bytes, `scales` NULL; forms of four bits. Tiles give the same bits: 0 is of
// 8 rows, 1 of 16, 2 of 64.
typedef struct {
  void* y;
  const void* x;
  const float* scales;
  const void *w, *bias;
  int64_t m, n, k, x_stride, y_stride;
  int32_t form, y_is_float32, bias_is_float32, tile;
} splice_cuda_block_gemm_args;
int splice_cuda_block_gemm(const splice_cuda_block_gemm_args* args, void* stream);
int splice_cuda_w4a16_gemm(const splice_cuda_block_gemm_args* args, void* stream);

// Rows ids[i] of a matrix [n, k] as float32 y [rows, k]; NaN where ids[i] is not 0 to n - 1.
typedef struct {
  float* y;
  const void* w;
  const int64_t* ids;
  int64_t rows, n, k;
  int32_t form;
} splice_cuda_block_row_lookup;
int splice_cuda_block_rows(const splice_cuda_block_row_lookup* args, void* stream);
// Mixtures of experts. Nothing here is sized by what the device alone knows: a captured graph replays for any choice of experts.

// From a router's logits to the experts every row goes through, as engine/ops/routing.py defines it: best first, the lower id of two
// alike, NaN above all numbers. num_experts ≤ 512, top_k and num_groups ≤ 32.
enum { SPLICE_CUDA_SOFTMAX = 0, SPLICE_CUDA_SOFTMAX_OF_CHOSEN = 1, SPLICE_CUDA_SIGMOID = 2 };
typedef struct {
  int64_t* experts;         // [rows, top_k]
  float* weights;           // the same
  const float* logits;      // [rows, num_experts]
  const float* score_bias;  // [num_experts], or NULL
  int64_t rows, num_experts, stride, top_k, num_groups, top_groups;
  int32_t scores, normalise, group_score_is_top2;
  float scale;
} splice_cuda_routing;
int splice_cuda_route(const splice_cuda_routing* args, void* stream);

// A tile of rows of one expert: rows first to first + rows - 1 of an array in the order of experts.
typedef struct {
  int32_t expert, first, rows;
} splice_cuda_tile;

// Brings choices into the order of experts, those of one expert in the order of tokens: expert e has counts[e] rows from offsets[e]
// on, one after another (max_rows 0) or each expert in `max_rows` rows of its own, of which the rest is left as it is; max_rows is not
// below `tokens`, and a token does not choose an expert twice then. An id outside 0…num_experts - 1 is nobody's: its place is -1.
// The tiles of all experts stand one after another in `tiles`, for which there is room for splice_cuda_permute_tiles.
typedef struct {
  const int64_t* experts;      // [tokens, top_k]
  int32_t* places;             // [tokens, top_k]: the row of a choice
  int32_t* sources;            // [tokens · top_k], or [num_experts · max_rows]: the token of a row
  int32_t *counts, *offsets;   // [num_experts]
  splice_cuda_tile* tiles;
  int32_t* tile_count;         // one
  int64_t tokens, top_k, num_experts, max_rows, tile_rows;  // num_experts ≤ 1024
} splice_cuda_permutation;
int splice_cuda_permute(const splice_cuda_permutation* args, void* stream);
int64_t splice_cuda_permute_tiles(int64_t tokens, int64_t top_k, int64_t num_experts, int64_t tile_rows);

// y[places[t, i]] = x[t], rows of `size`, a multiple of 8.
typedef struct {
  void* y;
  const void* x;
  const int32_t* places;
  int64_t tokens, top_k, size, x_stride;
} splice_cuda_gathering;
int splice_cuda_gather_rows(const splice_cuda_gathering* args, void* stream);

// out[t] = sum of weights[t, i] · y[places[t, i]] in float32 in ascending order of i, each product rounded before it is added, then
// + shared[t] unless NULL; rounded once. Rows of `size`, a multiple of 8.
typedef struct {
  void* out;
  const void *y, *shared;
  const int32_t* places;
  const float* weights;  // [tokens, top_k]
  int64_t tokens, top_k, size, shared_stride;
} splice_cuda_unpermutation;
int splice_cuda_unpermute(const splice_cuda_unpermutation* args, void* stream);

// y[r] = x[sources[r]]·W[e]ᵀ (+ bias[e]) of all rows r of the tiles; sources NULL: x[r]. W [experts, n, k], bias [experts, n]. With an
// activation (not below 0) y[r] is [n / 2], gated as splice_cuda_gated_mul does it to the rounded products. k and n are multiples of
// 8 (gated: n of 16). Each output is one chain over k in ascending order; tile_rows, which the tiles were made for, changes no bit.
typedef struct {
  void* y;
  const void *x, *w, *bias;
  const int32_t* sources;
  const splice_cuda_tile* tiles;
  const int32_t* tile_count;
  int64_t n, k, x_stride, max_tiles;
  int32_t tile_rows, activation;  // tile_rows 16, 64 or 128
} splice_cuda_grouped;
int splice_cuda_grouped_gemm(const splice_cuda_grouped* args, void* stream);

// The same on Hopper, through CUTLASS: without bias and activation, x in the order of experts. Rows offsets[e] to offsets[e] +
// counts[e] - 1 of y and x, both contiguous, are expert e's. tile 0 is for few rows an expert, 1 for many.
typedef struct {
  void* y;
  const void *x, *w;
  const float *x_scales, *w_scales;  // [rows], [experts, n]; of grouped_fp8 only
  const int32_t *counts, *offsets;
  void* workspace;  // of the bytes that the function's own _workspace says, -1 where no device can be asked; aligned to 256
  int64_t num_experts, n, k;
  int32_t tile;
} splice_cuda_grouped_sm90;
int splice_cuda_grouped_sm90_gemm(const splice_cuda_grouped_sm90* args, void* stream);
int64_t splice_cuda_grouped_sm90_workspace(int64_t num_experts);
// x and W in e4m3 codes (torch.float8_e4m3fn), one scale a row of either: y[r] = w_scales[e] · (x_scales[r] · (x[r]·W[e]ᵀ)). k is a
// multiple of 16.
int splice_cuda_grouped_fp8_gemm(const splice_cuda_grouped_sm90* args, void* stream);
int64_t splice_cuda_grouped_fp8_workspace(int64_t num_experts);
// Latents (DeepSeek-V2, arXiv 2405.04434): the paged cache `[blocks, layers, 1, 1, block_tokens, rank + rope]`, a row [latent | rotated
// key] for all heads. rank and rope: 512 and 64, or 256 and 32, for attention.
typedef struct {
  void* data;
  int64_t layers, block_tokens, rank, rope;
} splice_cuda_latents;

// Turns the last `rope` dimensions of every head of q `[tokens, heads, still + rope]` where they are, and writes [latent | turned key]
// of each token at slots[i] as splice_cuda_rope does, whose table and pairs these are. With `norm` (`[rank]`) latents go through
// splice_cuda_rms_norm first, to its bits. rank and rope are multiples of 8, rank at most 1024.
typedef struct {
  void* q;
  const void *latents, *keys, *norm;
  const float* cos_sin;
  const int64_t *positions, *slots;
  int64_t q_stride, latents_stride, keys_stride, tokens, heads, still, layer;
  splice_cuda_latents cache;
  int32_t norm_is_float32;
  float eps;
} splice_cuda_latent_store;
int splice_cuda_store_latents(const splice_cuda_latent_store* args, void* stream);

// Causal attention over latents: scores of [absorbed | rotated] with cache rows, weighted latents to `out`. absorbed and out
// `[rows, heads, rank]`, rotated `[rows, heads, rope]`, each with any strides that are multiples of 8; the rest as in
// splice_cuda_attention. `row_tile` (16, 32, 64) and `halves` (2 to 4) say how many rows a block takes and how much of the cache it
// loads ahead; 0 leaves either to the device. No bit depends on them.
typedef struct {
  void* out;
  const void *absorbed, *rotated;
  int64_t out_row_stride, out_head_stride, absorbed_row_stride, absorbed_head_stride, rotated_row_stride, rotated_head_stride;
  splice_cuda_latents cache;
  const int32_t *block_tables, *query_starts, *starts;
  void* workspace;  // of as many bytes as the function's own splice_cuda_latent_*_workspace says
  int64_t layer, table_stride, rows, sequences, heads, max_context, max_query;
  float scale;
  int32_t row_tile, halves;
} splice_cuda_latent_attention;
// For few rows a sequence: split over the keys.
int splice_cuda_latent_decode(const splice_cuda_latent_attention* args, void* stream);
int64_t splice_cuda_latent_decode_workspace(int64_t rows, int64_t heads, int64_t rank, int64_t max_context);
// For many. The same bits. The workspace is of the current device's size; −1 where there is no device to ask.
int splice_cuda_latent_prefill(const splice_cuda_latent_attention* args, void* stream);
int64_t splice_cuda_latent_prefill_workspace(int64_t rank, int64_t max_context);

// y[row, head, :n] = x[row, head, :k]·W, W of the head `[k, n]`, or `[n, k]` with `w_is_columns`; each with any strides. k, n and all
// strides are multiples of 8. One chain over k an output.
typedef struct {
  void* y;
  const void *x, *w;
  int64_t y_row_stride, y_head_stride, x_row_stride, x_head_stride, w_row_stride, w_head_stride;
  int64_t rows, heads, k, n;
  int32_t w_is_columns;
} splice_cuda_head_product;
int splice_cuda_head_products(const splice_cuda_head_product* args, void* stream);
// sums[i], 16 bytes each, becomes the digest of block ids[i] (NULL: i) of a pool of blocks of block_bytes, a multiple of 16: the one
// kvtransfer/kv_checksum.py defines. `workspace` has splice_cuda_kv_checksum_workspace bytes. With `tokens`, only the rows of a
// block's first tokens[i] tokens are looked at: a block is spans of block_tokens rows of row_bytes, a multiple of 16.
typedef struct {
  void* sums;
  const void* data;
  const int64_t* ids;
  void* workspace;
  int64_t blocks, block_bytes;
  const int64_t* tokens;
  int64_t row_bytes, block_tokens;  // unused without `tokens`
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

// splice_cuda_grouped_gemm with W in e4m3 codes [experts, n, k] and scales of rows [experts, n] or of blocks [experts, ceil(n / 128),
// ceil(k / 128)]; with an activation those of gates and then those of ups, ceil(n / 2 / 128) each. k is a multiple of 16, tile_rows 16
// or 64. Each output has the bits of splice_cuda_gemm_fp8_weights.
typedef struct {
  splice_cuda_grouped product;
  const float* w_scales;
  int32_t w_scaling;  // SPLICE_CUDA_ROWS or SPLICE_CUDA_BLOCKS
} splice_cuda_grouped_codes;
int splice_cuda_grouped_fp8_weights(const splice_cuda_grouped_codes* args, void* stream);

// The same of splice_cuda_store_latents: [latent | turned key] of row i a second time at peer_slots[i] of the cache at peers[i].
typedef struct {
  splice_cuda_latent_store store;
  const int64_t *peers, *peer_slots;
} splice_cuda_latent_push;
int splice_cuda_push_latents(const splice_cuda_latent_push* args, void* stream);

// splice_cuda_prefill_attention on Hopper, by products of warpgroups: head_dim 64, 80, 96 or 128. The same order of operations; the same
// bits where the matrix units round alike.
int splice_cuda_prefill_attention_sm90(const splice_cuda_attention* args, void* stream);

// ---- Experts in FP8 whose rows are codes too ----
//
// splice_cuda_quantise_fp8 of x [tokens, size] with scales of ROWS or BLOCKS, each token's codes and scales written to all rows that its
// choices have: row places[t, i] of `to`, which has `rows` rows; what no choice fills is not written.
typedef struct {
  splice_cuda_codes to;
  const void* x;
  const int32_t* places;  // [tokens, top_k], -1: nobody's
  int64_t tokens, top_k, size, x_stride, rows;
} splice_cuda_gathered_codes;
int splice_cuda_gather_fp8(const splice_cuda_gathered_codes* args, void* stream);

// splice_cuda_grouped_fp8_gemm with scales of BLOCKS: of x as splice_cuda_quantise_fp8 leaves them, w_scales [experts, ceil(n / 128),
// k / 128]. k is a multiple of 128. Tile 0 is for few rows an expert, 1 for many.
typedef struct {
  splice_cuda_grouped_sm90 product;
  int64_t x_scale_stride;
} splice_cuda_grouped_blocks;
int splice_cuda_grouped_fp8_blocks_gemm(const splice_cuda_grouped_blocks* args, void* stream);
int64_t splice_cuda_grouped_fp8_blocks_workspace(int64_t num_experts);

// splice_cuda_latent_decode and splice_cuda_latent_prefill, with the same workspaces, on Hopper by products of warpgroups. row_tile is 0
// or 64, halves 0 or 4.
int splice_cuda_latent_sm90_decode(const splice_cuda_latent_attention* args, void* stream);
int splice_cuda_latent_sm90_prefill(const splice_cuda_latent_attention* args, void* stream);

#ifdef __cplusplus
}
#endif
#endif
