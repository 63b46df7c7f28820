// What kernels of attention over latents share around their tiles: arguments they take, what a span leaves behind, how that is joined.
#pragma once

#include "latent_rows.h"

namespace splice::cuda {

// Four neighbours in a row of float32, moved at once.
struct alignas(16) Quad {
  float value[4];
};

inline int64_t spans_of(int64_t context) { return (context + LATENT_SPAN_KEYS - 1) / LATENT_SPAN_KEYS; }

// Parts of row r (of out's rows of heads) and span s: maximum and sum at [2·(r·spans + s)], accumulators behind all those.
struct Parts {
  float *sums, *accumulators;
  int64_t spans;

  SPLICE_DEVICE Parts(const splice_cuda_latent_attention& args, int64_t count)
      : sums(static_cast<float*>(args.workspace)), accumulators(sums + (2 * args.rows * args.heads * count + 3) / 4 * 4), spans(count) {}
  SPLICE_DEVICE float* sum_of(int64_t row, int64_t span) const { return sums + 2 * (row * spans + span); }
  SPLICE_DEVICE float* accumulator(int64_t row, int64_t span, int64_t rank) const { return accumulators + (row * spans + span) * rank; }
};

// Sources that include this are compiled for different architectures: each has a kernel of its own.
namespace {

// A block joins the parts of one row of heads, each thread four neighbouring elements. Rows of a single span are written already.
template <class Shape>
SPLICE_KERNEL __launch_bounds__(Shape::rank / 4) join_latent_spans(splice_cuda_latent_attention args, int64_t spans) {
  const int64_t row = block_x(), token = row / args.heads, sequence = sequence_of(args.query_starts, args.sequences, token);
  const int64_t end = args.starts[sequence] + token - args.query_starts[sequence] + 1;
  if (end <= LATENT_SPAN_KEYS) return;
  const int64_t count = (end + LATENT_SPAN_KEYS - 1) / LATENT_SPAN_KEYS;
  const Parts parts(args, spans);
  const auto* from = reinterpret_cast<const Quad*>(parts.accumulator(row, 0, Shape::rank)) + thread_index();
  float maximum = NEGATIVE_INFINITY, total = 0.0f, all[4] = {};
  SPLICE_UNROLL_BY_8
  for (int64_t span = 0; span < count; ++span) {
    const float* sums = parts.sum_of(row, span);
    const Shares shares = joined(maximum, sums[0]);
    const Quad part = from[span * (Shape::rank / 4)];
    maximum = shares.maximum;
    total = merged(total, sums[1], shares);
    SPLICE_UNROLL
    for (int i = 0; i < 4; ++i) all[i] = merged(all[i], part.value[i], shares);
  }
  auto* out = static_cast<uint16_t*>(args.out) + token * args.out_row_stride + row % args.heads * args.out_head_stride;
  auto* to = reinterpret_cast<uint32_t*>(out) + 2 * thread_index();
  to[0] = to_bf16_pair(quotient(all[0], total), quotient(all[1], total));
  to[1] = to_bf16_pair(quotient(all[2], total), quotient(all[3], total));
}

}  // namespace

// Bytes. Of decode for its parts; of prefill for sums of 64 rows a multiprocessor, −1 where there is no device to ask.
inline int64_t decode_workspace(int64_t rows, int64_t heads, int64_t rank, int64_t max_context) {
  const int64_t spans = spans_of(max_context), parts = rows * heads * spans;
  return spans <= 1 ? 0 : ((2 * parts + 3) / 4 * 4 + parts * rank) * static_cast<int64_t>(sizeof(float));
}
inline int64_t prefill_workspace(int64_t rank, int64_t max_context) {
  if (spans_of(max_context) <= 1) return 0;
  DeviceLimits limits;
  if (read_limits("latent_prefill", limits) != SPLICE_CUDA_OK) return -1;
  return limits.multiprocessors * 64 * rank * static_cast<int64_t>(sizeof(float));
}

// Whether arguments are such as all of the kernels take; `workspace`: bytes that are needed.
inline int check_latents(const char* name, const splice_cuda_latent_attention& args, int64_t workspace) {
  const splice_cuda_latents& cache = args.cache;
  if (block_shift(cache.block_tokens) < 0)
    return fail(SPLICE_CUDA_UNSUPPORTED, "%s: blocks of %lld tokens, expected 16, 32, 64, 128 or 256", name,
                static_cast<long long>(cache.block_tokens));
  if (!aligned(cache.data) || !aligned(args.absorbed) || !aligned(args.rotated) || !aligned(args.out))
    return fail(SPLICE_CUDA_INVALID, "%s: absorbed, rotated, out and the cache must be aligned to 16 bytes", name);
  const int64_t strides[] = {args.out_row_stride,      args.out_head_stride,    args.absorbed_row_stride,
                             args.absorbed_head_stride, args.rotated_row_stride, args.rotated_head_stride};
  for (const int64_t stride : strides)
    if (stride % CHUNK_ELEMENTS) return fail(SPLICE_CUDA_INVALID, "%s: a stride of %lld, expected a multiple of 8", name, static_cast<long long>(stride));
  if (args.max_context <= 0 || args.max_query <= 0 || args.max_context > args.table_stride * cache.block_tokens)
    return fail(SPLICE_CUDA_INVALID, "%s: a context of up to %lld in block tables for %lld tokens", name,
                static_cast<long long>(args.max_context), static_cast<long long>(args.table_stride * cache.block_tokens));
  if (args.heads <= 0 || args.max_query * args.heads * args.sequences >= int64_t{1} << 30 || args.max_context >= int64_t{1} << 30)
    return fail(SPLICE_CUDA_INVALID, "%s: %lld heads of up to %lld rows of %lld sequences, expected some, and fewer than 2^30 in all", name,
                static_cast<long long>(args.heads), static_cast<long long>(args.max_query), static_cast<long long>(args.sequences));
  if (workspace && (!args.workspace || !aligned(args.workspace)))
    return fail(SPLICE_CUDA_INVALID, "%s: a workspace aligned to 16 bytes is needed", name);
  return SPLICE_CUDA_OK;
}

template <class Call>
int with_latent_shape(const char* name, const splice_cuda_latents& cache, const Call& call) {
  if (cache.rank == 512 && cache.rope == 64) return call(LatentShape<512, 64>());
  if (cache.rank == 256 && cache.rope == 32) return call(LatentShape<256, 32>());
  return fail(SPLICE_CUDA_UNSUPPORTED, "%s: latents of %lld + %lld, expected 512 + 64 or 256 + 32", name, static_cast<long long>(cache.rank),
              static_cast<long long>(cache.rope));
}

}  // namespace splice::cuda
