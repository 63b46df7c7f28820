// RMSNorm (arXiv 1910.07467), alone or of a residual sum that it updates, in bfloat16 or on to e4m3 codes. Compiled for sm_80 and
// sm_90; not yet run on a GPU.
//
// Moves 4 bytes an element, 4 more with a residual, 1 less where codes are all that is written; about 5 operations each, some 10 more
// for codes: bound by memory. A row stays in the registers of its block (rows.h) from the sum of squares to the product and its codes.
// A thread's partial sum runs through its chunks in order, then comes block_sum.
#include "code_rows.h"
#include "launch.h"
#include "rows.h"

namespace splice::cuda {
namespace {

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

template <bool float32_weight, bool coded>
SPLICE_KERNEL __launch_bounds__(ROW_THREADS) norm_rows(splice_cuda_norm args, splice_cuda_codes to) {
  const int64_t row = block_x(), chunks = args.size / CHUNK_ELEMENTS;
  const auto* x = reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.x) + row * args.x_stride);
  auto* y = args.y ? reinterpret_cast<Chunk*>(static_cast<uint16_t*>(args.y) + row * args.size) : nullptr;
  auto* room = reinterpret_cast<float*>(shared_memory());
  auto* residual = args.residual ? reinterpret_cast<Chunk*>(static_cast<uint16_t*>(args.residual) + row * args.size) : nullptr;
  Chunk kept[ROW_KEPT];
  float squares = 0.0f;
  SPLICE_UNROLL
  for (int i = 0; i < ROW_KEPT; ++i) {
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
  const float mean = quotient(block_sum(squares, room), static_cast<float>(args.size));
  const float inverse = inverse_root(sum(mean, args.eps));
  SPLICE_UNROLL
  for (int i = 0; i < ROW_KEPT; ++i) {
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
    if (!coded || y) y[at] = out;
    kept[i] = out;
  }
  if constexpr (coded) write_codes(to, row, chunks, kept, room + ROW_THREADS / WARP);
}

int check(const char* name, const splice_cuda_norm& args) {
  if (args.rows < 0 || args.size <= 0 || args.size % CHUNK_ELEMENTS || args.size > MAX_ROW_SIZE || args.x_stride % CHUNK_ELEMENTS)
    return fail(SPLICE_CUDA_INVALID, "%s: size %lld and x_stride %lld, expected multiples of 8, the size 8 to %d", name,
                static_cast<long long>(args.size), static_cast<long long>(args.x_stride), MAX_ROW_SIZE);
  if (!aligned(args.x) || !aligned(args.y) || !aligned(args.residual) || !aligned(args.weight))
    return fail(SPLICE_CUDA_INVALID, "%s: x, y, residual and weight must be aligned to 16 bytes", name);
  return SPLICE_CUDA_OK;
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_rms_norm(const splice_cuda_norm* args, void* stream) {
  using namespace splice::cuda;
  if (const int code = check("rms_norm", *args); code != SPLICE_CUDA_OK) return code;
  const auto kernel = args->weight_is_float32 ? norm_rows<true, false> : norm_rows<false, false>;
  return launch("rms_norm", kernel, {args->rows}, threads_for_row(args->size), ROW_ROOM_BYTES, stream, *args, splice_cuda_codes{});
}

extern "C" int splice_cuda_rms_norm_fp8(const splice_cuda_norm_codes* args, void* stream) {
  using namespace splice::cuda;
  const splice_cuda_norm& norm = args->norm;
  if (const int code = check("rms_norm_fp8", norm); code != SPLICE_CUDA_OK) return code;
  if (const int code = check_codes("rms_norm_fp8", args->to, norm.rows, norm.size); code != SPLICE_CUDA_OK) return code;
  const auto kernel = norm.weight_is_float32 ? norm_rows<true, true> : norm_rows<false, true>;
  return launch("rms_norm_fp8", kernel, {norm.rows}, threads_for_row(norm.size), ROW_ROOM_BYTES, stream, norm, args->to);
}
