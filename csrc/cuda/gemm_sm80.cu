// y = x·Wᵀ (+ bias) in bfloat16 with float32 sums, through CUTLASS 2.x: mma.sync fed by cp.async, for Ampere, Ada and, slower than
// gemm_sm90.cu, everything after. Compiled for sm_80; not yet run on a GPU.
//
// Moves 2·(m·k + n·k) bytes and y once, does 2·m·n·k operations: bound by W's bytes up to some 200 rows, by the matrix units above.
// One chain over k per output, in steps of 16 in ascending order; k is never split.
#include <cutlass/epilogue/thread/linear_combination.h>
#include <cutlass/gemm/device/gemm_universal.h>

#include "gemm.h"

namespace splice::cuda {
namespace {

template <class Out, int rows, int columns, int warp_rows, int warp_columns, int stages>
using Product = cutlass::gemm::device::GemmUniversal<
    cutlass::bfloat16_t, cutlass::layout::RowMajor, cutlass::bfloat16_t, cutlass::layout::ColumnMajor, Out, cutlass::layout::RowMajor, float,
    cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, cutlass::gemm::GemmShape<rows, columns, 32>,
    cutlass::gemm::GemmShape<warp_rows, warp_columns, 32>, cutlass::gemm::GemmShape<16, 8, 16>,
    cutlass::epilogue::thread::LinearCombination<Out, 8, float, float>, cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>, stages>;

// The bias comes as the epilogue's source, a matrix whose rows are all the same place.
template <class Gemm, class Out>
int multiply(const splice_cuda_gemm& args, cudaStream_t stream) {
  const float beta = args.bias ? 1.0f : 0.0f;
  const void* source = args.bias ? args.bias : args.y;
  const int64_t source_stride = args.bias ? 0 : args.y_stride;
  typename Gemm::Arguments arguments(
      cutlass::gemm::GemmUniversalMode::kGemm, {static_cast<int>(args.m), static_cast<int>(args.n), static_cast<int>(args.k)}, 1, {1.0f, beta},
      args.x, args.w, source, args.y, args.m * args.x_stride, args.n * args.w_stride, args.n, args.m * args.y_stride, args.x_stride,
      args.w_stride, source_stride, args.y_stride);
  Gemm gemm;
  cutlass::Status status = gemm.can_implement(arguments);
  if (status == cutlass::Status::kSuccess) status = gemm.initialize(arguments, nullptr, stream);
  if (status == cutlass::Status::kSuccess) status = gemm.run(stream);
  if (status != cutlass::Status::kSuccess)
    return fail(SPLICE_CUDA_FAILED, "gemm_sm80: %s", cutlass::cutlassGetStatusString(status));
  return SPLICE_CUDA_OK;
}

template <class Out>
int choose(const splice_cuda_gemm& args, cudaStream_t stream) {
  if (args.tile == 0) return multiply<Product<Out, 64, 64, 32, 32, 5>, Out>(args, stream);
  return multiply<Product<Out, 128, 128, 64, 64, 4>, Out>(args, stream);
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_gemm_sm80(const splice_cuda_gemm* args, void* stream) {
  using namespace splice::cuda;
  const int code = check_gemm("gemm_sm80", *args, 2);
  if (code != SPLICE_CUDA_OK || args->m == 0) return code;
  if (args->bias && args->y_is_float32) return fail(SPLICE_CUDA_UNSUPPORTED, "gemm_sm80: a bias goes with a result in bfloat16");
  auto* on = static_cast<cudaStream_t>(stream);
  return args->y_is_float32 ? choose<float>(*args, on) : choose<cutlass::bfloat16_t>(*args, on);
}
