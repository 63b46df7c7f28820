// Products of each expert's rows with its own weights on Hopper, through CUTLASS 3.x: wgmma fed by TMA, one group an expert
// (grouped_sm90.h). Compiled for sm_90a; not yet run on a GPU.
//
// Moves every chosen expert's n·k weights, 2 bytes each, and its rows; does 2·n·k operations a row: bound by the weights' bytes while
// experts have fewer rows than some hundred, by the matrix units above. Rows must stand in the order of experts (gather_rows): TMA reads
// no list of rows.
//
// One chain over k per output, in steps of 16 in ascending order; k is never split, and a group's tiles end where its rows do.
//
// Tile 0 is for few rows an expert: the roles are exchanged, yᵀ = W·xᵀ, so that the 64 rows a wgmma must have are rows of W, and the 32
// columns beside them cost nothing a product bound by W's bytes would notice. Tile 1 is for many.
#include "grouped_sm90.h"

namespace splice::cuda {
namespace {

constexpr const char* NAME = "grouped_sm90";
constexpr int MULTIPLE = 8;

using grouped::Bf16, cute::Shape, cute::_32, cute::_64, cute::_128, cute::_256;
using Few = grouped::Product<Bf16, false, true, Shape<_64, _32, _128>, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong,
                             cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>;
using Many = grouped::Product<Bf16, false, false, Shape<_128, _256, _64>, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative,
                              cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative>;

}  // namespace
}  // namespace splice::cuda

extern "C" {

int64_t splice_cuda_grouped_sm90_workspace(int64_t num_experts) {
  using namespace splice::cuda;
  return grouped::workspace<Few, Many>(NAME, num_experts);
}

int splice_cuda_grouped_sm90_gemm(const splice_cuda_grouped_sm90* args, void* stream) {
  using namespace splice::cuda;
  return grouped::multiply<Few, Many>(NAME, *args, MULTIPLE, stream);
}

}
