// RMSNorm (arXiv 1910.07467), alone or of a residual sum that it updates. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves 4 bytes an element, 8 with a residual; about 5 operations each: bound by memory. A row stays in the registers of its block
// between the sum of squares and the product. Of H elements, thread t has chunks t, t + T, … of 8, T a function of H alone; its
// partial sum runs through them in order, then comes block_sum.
#include "launch.h"
#include "rows.h"

namespace splice::cuda {
namespace {

constexpr int MAX_THREADS = 1024, KEPT = 4, MAX_SIZE = MAX_THREADS * KEPT * CHUNK_ELEMENTS;

int threads_for(int64_t size) {
  const int64_t chunks = size / CHUNK_ELEMENTS, whole = (chunks + WARP - 1) / WARP * WARP;
  return static_cast<int>(whole < MAX_THREADS ? whole : MAX_THREADS);
}

SPLICE_DEVICE uint32_t pair_sum(uint32_t a, uint32_t b) {
  return to_bf16_pair(sum(low_of(a), low_of(b)), sum(high_of(a), high_of(b)));
}

SPLICE_DEVICE uint32_t scaled_pair(uint32_t x, float inverse, uint32_t weight) {
  const uint32_t quotient = to_bf16_pair(product(low_of(x), inverse), product(high_of(x), inverse));
  return to_bf16_pair(product(low_of(quotient), low_of(weight)), product(high_of(quotient), high_of(weight)));
}

SPLICE_DEVICE uint32_t scaled_pair(uint32_t x, float inverse, float low, float high) {
  return to_bf16_pair(product(product(low_of(x), inverse), low), product(product(high_of(x), inverse), high));
}

template <bool float32_weight>
SPLICE_KERNEL __launch_bounds__(MAX_THREADS) norm_rows(splice_cuda_norm args) {
  const int64_t row = block_x(), chunks = args.size / CHUNK_ELEMENTS;
  const auto* x = reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.x) + row * args.x_stride);
  auto* y = reinterpret_cast<Chunk*>(static_cast<uint16_t*>(args.y) + row * args.size);
  auto* residual = args.residual ? reinterpret_cast<Chunk*>(static_cast<uint16_t*>(args.residual) + row * args.size) : nullptr;
  Chunk kept[KEPT];
  float squares = 0.0f;
  SPLICE_UNROLL
  for (int i = 0; i < KEPT; ++i) {
    const int64_t at = thread_index() + static_cast<int64_t>(i) * block_threads();
    if (at >= chunks) continue;
    kept[i] = x[at];
    if (residual) {
      const Chunk before = residual[at];
      SPLICE_UNROLL
      for (int w = 0; w < 4; ++w) kept[i].word[w] = pair_sum(kept[i].word[w], before.word[w]);
      residual[at] = kept[i];
    }
    SPLICE_UNROLL
    for (int w = 0; w < 4; ++w) {
      squares = fused(low_of(kept[i].word[w]), low_of(kept[i].word[w]), squares);
      squares = fused(high_of(kept[i].word[w]), high_of(kept[i].word[w]), squares);
    }
  }
  const float mean = quotient(block_sum(squares, reinterpret_cast<float*>(shared_memory())), static_cast<float>(args.size));
  const float inverse = inverse_root(sum(mean, args.eps));
  SPLICE_UNROLL
  for (int i = 0; i < KEPT; ++i) {
    const int64_t at = thread_index() + static_cast<int64_t>(i) * block_threads();
    if (at >= chunks) continue;
    Chunk out;
    if constexpr (float32_weight) {
      const float* weight = static_cast<const float*>(args.weight) + at * CHUNK_ELEMENTS;
      SPLICE_UNROLL
      for (int w = 0; w < 4; ++w) out.word[w] = scaled_pair(kept[i].word[w], inverse, weight[2 * w], weight[2 * w + 1]);
    } else {
      const Chunk weight = static_cast<const Chunk*>(args.weight)[at];
      SPLICE_UNROLL
      for (int w = 0; w < 4; ++w) out.word[w] = scaled_pair(kept[i].word[w], inverse, weight.word[w]);
    }
    y[at] = out;
  }
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_rms_norm(const splice_cuda_norm* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows < 0 || args->size <= 0 || args->size % CHUNK_ELEMENTS || args->size > MAX_SIZE || args->x_stride % CHUNK_ELEMENTS)
    return fail(SPLICE_CUDA_INVALID, "rms_norm: size %lld and x_stride %lld, expected multiples of 8, the size 8 to %d",
                static_cast<long long>(args->size), static_cast<long long>(args->x_stride), MAX_SIZE);
  if (!aligned(args->x) || !aligned(args->y) || !aligned(args->residual) || !aligned(args->weight))
    return fail(SPLICE_CUDA_INVALID, "rms_norm: x, y, residual and weight must be aligned to 16 bytes");
  const auto kernel = args->weight_is_float32 ? norm_rows<true> : norm_rows<false>;
  return launch("rms_norm", kernel, {args->rows}, threads_for(args->size), MAX_THREADS / WARP * sizeof(float), stream, *args);
}
