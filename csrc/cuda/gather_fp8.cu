// Tokens in bfloat16 become e4m3 codes and scales where their choices of experts stand: see splice_cuda_gathered_codes.
// Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Reads 2 bytes an element of a token and writes 1 for each of its choices, with 4 a scale; some 10 operations an element: bound by
// memory. A block keeps a token in its registers (rows.h) between its largest magnitude and its codes, which are made once and stored in
// every place.
#include "code_rows.h"
#include "launch.h"

namespace splice::cuda {
namespace {

// A token's choices.
struct Places {
  const int32_t* places;
  int64_t top_k;
  SPLICE_DEVICE int64_t count() const { return top_k; }
  SPLICE_DEVICE int64_t place(int64_t choice) const { return places[choice]; }
};

SPLICE_KERNEL __launch_bounds__(ROW_THREADS) gather_codes(splice_cuda_gathered_codes args) {
  const int64_t token = block_x(), chunks = args.size / CHUNK_ELEMENTS;
  const auto* x = reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.x) + token * args.x_stride);
  Chunk kept[ROW_KEPT];
  SPLICE_UNROLL
  for (int i = 0; i < ROW_KEPT; ++i) {
    const int64_t at = thread_index() + static_cast<int64_t>(i) * block_threads();
    if (at < chunks) kept[i] = x[at];
  }
  const Places places{args.places + token * args.top_k, args.top_k};
  write_codes(args.to, places, chunks, kept, reinterpret_cast<float*>(shared_memory()));
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_gather_fp8(const splice_cuda_gathered_codes* args, void* stream) {
  using namespace splice::cuda;
  if (args->tokens < 0 || args->top_k <= 0 || args->size <= 0 || args->x_stride % CHUNK_ELEMENTS || !aligned(args->x))
    return fail(SPLICE_CUDA_INVALID, "gather_fp8: %lld choices, size %lld and x_stride %lld, expected one at least and rows aligned to 16 bytes",
                static_cast<long long>(args->top_k), static_cast<long long>(args->size), static_cast<long long>(args->x_stride));
  if (args->to.scaling == SPLICE_CUDA_TENSOR)
    return fail(SPLICE_CUDA_INVALID, "gather_fp8: one scale for all, expected one a row or of blocks");
  if (const int code = check_codes("gather_fp8", args->to, args->rows, args->size); code != SPLICE_CUDA_OK) return code;
  return launch("gather_fp8", gather_codes, {args->tokens}, threads_for_row(args->size), ROW_ROOM_BYTES, stream, *args);
}
