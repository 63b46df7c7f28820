// The gate of an MLP (gate.h) times the up half.
// Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves 6 bytes an output element, some 15 operations each: bound by memory. Every element is computed in float32 by itself and
// rounded once.
#include "gate.h"
#include "launch.h"
#include "rows.h"

namespace splice::cuda {
namespace {

constexpr int THREADS = 256;

template <int activation>
SPLICE_KERNEL __launch_bounds__(THREADS) gate_rows(splice_cuda_gate args) {
  const int64_t chunks = args.size / CHUNK_ELEMENTS, at = block_x() * THREADS + thread_index();
  if (at >= args.rows * chunks) return;
  const int64_t row = at / chunks, chunk = at % chunks;
  const auto* x = reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.x) + row * args.x_stride);
  const Chunk gate = x[chunk], up = x[chunks + chunk];
  Chunk out;
  SPLICE_UNROLL
  for (int w = 0; w < 4; ++w)
    out.word[w] = to_bf16_pair(gated<activation>(low_of(gate.word[w]), low_of(up.word[w])),
                               gated<activation>(high_of(gate.word[w]), high_of(up.word[w])));
  static_cast<Chunk*>(args.y)[at] = out;
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_gated_mul(const splice_cuda_gate* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows < 0 || args->size <= 0 || args->size % CHUNK_ELEMENTS || args->x_stride % CHUNK_ELEMENTS)
    return fail(SPLICE_CUDA_INVALID, "gated_mul: size %lld and x_stride %lld, expected multiples of 8", static_cast<long long>(args->size),
                static_cast<long long>(args->x_stride));
  if (!aligned(args->x) || !aligned(args->y)) return fail(SPLICE_CUDA_INVALID, "gated_mul: x and y must be aligned to 16 bytes");
  const auto kernel = args->activation == SPLICE_CUDA_SILU        ? gate_rows<SPLICE_CUDA_SILU>
                      : args->activation == SPLICE_CUDA_GELU_TANH ? gate_rows<SPLICE_CUDA_GELU_TANH>
                                                                  : gate_rows<SPLICE_CUDA_SWIGLU_OAI>;
  const int64_t chunks = args->rows * (args->size / CHUNK_ELEMENTS);
  return launch("gated_mul", kernel, {(chunks + THREADS - 1) / THREADS}, THREADS, 0, stream, *args);
}
