// Rows in bfloat16 become e4m3 codes and scales: see splice_cuda_codes. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves 3 bytes an element and 4 a scale, some 10 operations each: bound by memory. A block keeps a row in its registers (rows.h)
// between its largest magnitude and its codes.
#include "code_rows.h"
#include "launch.h"

namespace splice::cuda {
namespace {

SPLICE_KERNEL __launch_bounds__(ROW_THREADS) quantise_rows(splice_cuda_row_codes args) {
  const int64_t row = block_x(), chunks = args.size / CHUNK_ELEMENTS;
  const auto* x = reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.x) + row * args.x_stride);
  Chunk kept[ROW_KEPT];
  SPLICE_UNROLL
  for (int i = 0; i < ROW_KEPT; ++i) {
    const int64_t at = thread_index() + static_cast<int64_t>(i) * block_threads();
    if (at < chunks) kept[i] = x[at];
  }
  write_codes(args.to, row, chunks, kept, reinterpret_cast<float*>(shared_memory()));
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_quantise_fp8(const splice_cuda_row_codes* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows < 0 || args->size <= 0 || args->x_stride % CHUNK_ELEMENTS || !aligned(args->x))
    return fail(SPLICE_CUDA_INVALID, "quantise_fp8: size %lld and x_stride %lld, expected rows aligned to 16 bytes",
                static_cast<long long>(args->size), static_cast<long long>(args->x_stride));
  if (const int code = check_codes("quantise_fp8", args->to, args->rows, args->size); code != SPLICE_CUDA_OK) return code;
  return launch("quantise_fp8", quantise_rows, {args->rows}, threads_for_row(args->size), ROW_ROOM_BYTES, stream, *args);
}
