// The gate of an MLP (gate.h) times the up half.
// In bfloat16 or on to e4m3 codes. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves 6 bytes an output element, 5 where codes are all that is written, some 15 operations each, 10 more for codes: bound by memory.
// Every element is computed in float32 by itself and rounded once. On the way to codes a block keeps a row in its registers (rows.h).
#include "code_rows.h"
#include "gate.h"
#include "launch.h"
#include "rows.h"

namespace splice::cuda {
namespace {

constexpr int THREADS = 256;

template <int activation>
SPLICE_DEVICE Chunk gated_chunk(const Chunk& gate, const Chunk& up) {
  Chunk out;
  SPLICE_UNROLL
  for (int w = 0; w < 4; ++w)
    out.word[w] = to_bf16_pair(gated<activation>(low_of(gate.word[w]), low_of(up.word[w])),
                               gated<activation>(high_of(gate.word[w]), high_of(up.word[w])));
  return out;
}

template <int activation>
SPLICE_KERNEL __launch_bounds__(THREADS) gate_rows(splice_cuda_gate args) {
  const int64_t chunks = args.size / CHUNK_ELEMENTS, at = block_x() * THREADS + thread_index();
  if (at >= args.rows * chunks) return;
  const int64_t row = at / chunks, chunk = at % chunks;
  const auto* x = reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.x) + row * args.x_stride);
  static_cast<Chunk*>(args.y)[at] = gated_chunk<activation>(x[chunk], x[chunks + chunk]);
}

template <int activation>
SPLICE_KERNEL __launch_bounds__(ROW_THREADS) gate_rows_to_codes(splice_cuda_gate args, splice_cuda_codes to) {
  const int64_t row = block_x(), chunks = args.size / CHUNK_ELEMENTS;
  const auto* x = reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.x) + row * args.x_stride);
  auto* y = args.y ? static_cast<Chunk*>(args.y) + row * chunks : nullptr;
  Chunk kept[ROW_KEPT];
  SPLICE_UNROLL
  for (int i = 0; i < ROW_KEPT; ++i) {
    const int64_t at = thread_index() + static_cast<int64_t>(i) * block_threads();
    if (at >= chunks) continue;
    kept[i] = gated_chunk<activation>(x[at], x[chunks + at]);
    if (y) y[at] = kept[i];
  }
  write_codes(to, row, chunks, kept, reinterpret_cast<float*>(shared_memory()));
}

int check(const char* name, const splice_cuda_gate& args) {
  if (args.rows < 0 || args.size <= 0 || args.size % CHUNK_ELEMENTS || args.x_stride % CHUNK_ELEMENTS)
    return fail(SPLICE_CUDA_INVALID, "%s: size %lld and x_stride %lld, expected multiples of 8", name, static_cast<long long>(args.size),
                static_cast<long long>(args.x_stride));
  if (!aligned(args.x) || !aligned(args.y)) return fail(SPLICE_CUDA_INVALID, "%s: x and y must be aligned to 16 bytes", name);
  return SPLICE_CUDA_OK;
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_gated_mul(const splice_cuda_gate* args, void* stream) {
  using namespace splice::cuda;
  if (const int code = check("gated_mul", *args); code != SPLICE_CUDA_OK) return code;
  const auto kernel = args->activation == SPLICE_CUDA_SILU        ? gate_rows<SPLICE_CUDA_SILU>
                      : args->activation == SPLICE_CUDA_GELU_TANH ? gate_rows<SPLICE_CUDA_GELU_TANH>
                                                                  : gate_rows<SPLICE_CUDA_SWIGLU_OAI>;
  const int64_t chunks = args->rows * (args->size / CHUNK_ELEMENTS);
  return launch("gated_mul", kernel, {(chunks + THREADS - 1) / THREADS}, THREADS, 0, stream, *args);
}

extern "C" int splice_cuda_gated_mul_fp8(const splice_cuda_gate_codes* args, void* stream) {
  using namespace splice::cuda;
  const splice_cuda_gate& gate = args->gate;
  if (const int code = check("gated_mul_fp8", gate); code != SPLICE_CUDA_OK) return code;
  if (const int code = check_codes("gated_mul_fp8", args->to, gate.rows, gate.size); code != SPLICE_CUDA_OK) return code;
  const auto kernel = gate.activation == SPLICE_CUDA_SILU        ? gate_rows_to_codes<SPLICE_CUDA_SILU>
                      : gate.activation == SPLICE_CUDA_GELU_TANH ? gate_rows_to_codes<SPLICE_CUDA_GELU_TANH>
                                                                 : gate_rows_to_codes<SPLICE_CUDA_SWIGLU_OAI>;
  return launch("gated_mul_fp8", kernel, {gate.rows}, threads_for_row(gate.size), ROW_ROOM_BYTES, stream, gate, args->to);
}
