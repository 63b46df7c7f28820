// Products of each expert's rows with its own weights in e4m3 codes on Hopper, one scale a row of either, through CUTLASS 3.x: wgmma fed
// by TMA, one group an expert (grouped_sm90.h). Compiled for sm_90a; not yet run on a GPU.
//
// Moves every chosen expert's n·k weights, a byte each, and its rows; does 2·n·k operations a row at twice bfloat16's rate: bound by the
// weights' bytes while experts have fewer rows than some hundred, by the matrix units above. Rows must stand in the order of experts.
//
// One chain over k per output in ascending order, never split. The matrix units keep some 14 bits of a sum of FP8 products (DeepSeek-V3
// technical report, arXiv 2412.19437, section 3.3.2): wgmma sums 128 of k from zero, and these sums are added in float32. Then
// y = round(w scale · (x scale · sum)).
//
// Tile 0 is for few rows an expert, which is decode, its roles exchanged as in grouped_sm90.cu; tile 1, for many, is 128 × 128: sums of
// 128 of k take a second set of accumulators.
#include "grouped_sm90.h"

namespace splice::cuda {
namespace {

constexpr const char* NAME = "grouped_fp8_sm90";
constexpr int MULTIPLE = 16;

using E4m3 = cutlass::float_e4m3_t;
using cute::Shape, cute::_32, cute::_64, cute::_128;
using Few = grouped::Product<E4m3, true, true, Shape<_64, _32, _128>, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong,
                             cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>;
using Many = grouped::Product<E4m3, true, false, Shape<_128, _128, _128>, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative,
                              cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative>;

}  // namespace
}  // namespace splice::cuda

extern "C" {

int64_t splice_cuda_grouped_fp8_workspace(int64_t num_experts) {
  using namespace splice::cuda;
  return grouped::workspace<Few, Many>(NAME, num_experts);
}

int splice_cuda_grouped_fp8_gemm(const splice_cuda_grouped_sm90* args, void* stream) {
  using namespace splice::cuda;
  if (!args->x_scales || !args->w_scales) return fail(SPLICE_CUDA_INVALID, "%s: no scales, expected one a row of x and of W", NAME);
  return grouped::multiply<Few, Many>(NAME, *args, MULTIPLE, stream);
}

}
