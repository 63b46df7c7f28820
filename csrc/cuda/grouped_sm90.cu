// Products of each expert's rows with its own weights on Hopper, through CUTLASS 3.x: wgmma fed by TMA, one group an expert. Compiled for
// sm_90a; not yet run on a GPU.
//
// Moves every chosen expert's n·k weights, 2 bytes each, and its rows; does 2·n·k operations a row: bound by the weights' bytes while
// experts have fewer rows than some hundred, by the matrix units above. Sizes and addresses of groups are written by a kernel from the
// counts that permute left on the device; the grid is that of the device, and tiles are dealt out there. Rows must stand in the order of
// experts (gather_rows): TMA reads no list of rows.
//
// One chain over k per output, in steps of 16 in ascending order; k is never split, and a group's tiles end where its rows do.
//
// Tile 0 is for few rows an expert: the roles are exchanged, yᵀ = W·xᵀ, so that the 64 rows a wgmma must have are rows of W, and the 32
// columns beside them cost nothing a product bound by W's bytes would notice. Tile 1 is for many.
#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "launch.h"

namespace splice::cuda {
namespace {

constexpr const char* NAME = "grouped_sm90";
constexpr int64_t ALIGNMENT = 256;

using Bf16 = cutlass::bfloat16_t;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
using cute::_1, cute::_32, cute::_64, cute::_128, cute::_256;
using Cluster = cute::Shape<_1, _1, _1>;
using Size = cute::Shape<int, int, int>;

// What a launch reads of its groups, in the workspace: arrays of one element an expert.
template <class StrideA, class StrideB, class StrideD>
struct Groups {
  Size* sizes;
  const Bf16 **a, **b;
  Bf16** d;
  StrideA* a_strides;
  StrideB* b_strides;
  StrideD* d_strides;
  int64_t bytes;

  Groups(void* workspace, int64_t count) : bytes(0) {
    take(sizes, workspace, count);
    take(a, workspace, count);
    take(b, workspace, count);
    take(d, workspace, count);
    take(a_strides, workspace, count);
    take(b_strides, workspace, count);
    take(d_strides, workspace, count);
  }

 private:
  template <class T>
  void take(T*& array, void* workspace, int64_t count) {
    array = reinterpret_cast<T*>(static_cast<char*>(workspace) + bytes);
    bytes += (count * static_cast<int64_t>(sizeof(T)) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }
};

template <bool exchanged, class Groups>
__global__ void describe_groups(splice_cuda_grouped_sm90 args, Groups groups) {
  const int expert = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (expert >= args.num_experts) return;
  const int rows = args.counts[expert], n = static_cast<int>(args.n), k = static_cast<int>(args.k);
  const int64_t first = args.offsets[expert];
  const Bf16 *x = static_cast<const Bf16*>(args.x) + first * k, *w = static_cast<const Bf16*>(args.w) + expert * args.n * k;
  groups.sizes[expert] = exchanged ? Size{n, rows, k} : Size{rows, n, k};
  groups.a[expert] = exchanged ? w : x;
  groups.b[expert] = exchanged ? x : w;
  groups.d[expert] = static_cast<Bf16*>(args.y) + first * n;
  cute::get<0>(groups.a_strides[expert]) = k;
  cute::get<0>(groups.b_strides[expert]) = k;
  cute::get<exchanged ? 1 : 0>(groups.d_strides[expert]) = n;
}

// A [M, K] and B [N, K] of each group, both with contiguous k; D is [M, N], row major or, exchanged, column major.
template <bool exchanged, class Tile, class Mainloop, class Epilogue>
struct Product {
  using Layout = cute::conditional_t<exchanged, ColumnMajor, RowMajor>;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
      Layout*, 8, Bf16, Layout*, 8, Epilogue>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Bf16, RowMajor*, 8, Bf16, ColumnMajor*, 8, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename CollectiveEpilogue::SharedStorage))>,
      Mainloop>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<Size>, CollectiveMainloop, CollectiveEpilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Own = Groups<typename Kernel::InternalStrideA, typename Kernel::InternalStrideB, typename Kernel::InternalStrideD>;

  static typename Gemm::Arguments arguments(const Own& groups, int64_t count, const cutlass::KernelHardwareInfo& hardware) {
    typename Gemm::Arguments made{cutlass::gemm::GemmUniversalMode::kGrouped,
                                  {static_cast<int>(count), groups.sizes, nullptr},
                                  {groups.a, groups.a_strides, groups.b, groups.b_strides},
                                  {{}, nullptr, nullptr, groups.d, groups.d_strides},
                                  hardware};
    made.epilogue.thread.alpha = 1.0f;
    made.epilogue.thread.beta = 0.0f;
    return made;
  }

  static int64_t workspace(int64_t count, const cutlass::KernelHardwareInfo& hardware) {
    const Own groups(nullptr, count);
    return groups.bytes + static_cast<int64_t>(Gemm::get_workspace_size(arguments(groups, count, hardware)));
  }

  static int multiply(const splice_cuda_grouped_sm90& args, const cutlass::KernelHardwareInfo& hardware, void* stream) {
    const Own groups(args.workspace, args.num_experts);
    const int64_t blocks = (args.num_experts + 127) / 128;
    if (const int code = launch(NAME, describe_groups<exchanged, Own>, {blocks}, 128, 0, stream, args, groups); code != SPLICE_CUDA_OK) return code;
    const typename Gemm::Arguments made = arguments(groups, args.num_experts, hardware);
    auto* on = static_cast<cudaStream_t>(stream);
    Gemm gemm;
    cutlass::Status status = gemm.can_implement(made);
    if (status == cutlass::Status::kSuccess) status = gemm.initialize(made, static_cast<char*>(args.workspace) + groups.bytes, on);
    if (status == cutlass::Status::kSuccess) status = gemm.run(on);
    if (status != cutlass::Status::kSuccess) return fail(SPLICE_CUDA_FAILED, "%s: %s", NAME, cutlass::cutlassGetStatusString(status));
    return SPLICE_CUDA_OK;
  }
};

using Few = Product<true, cute::Shape<_64, _32, _128>, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong,
                    cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>;
using Many = Product<false, cute::Shape<_128, _256, _64>, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative,
                     cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative>;

int describe_device(cutlass::KernelHardwareInfo& hardware) {
  if (const cudaError_t error = cudaGetDevice(&hardware.device_id); error != cudaSuccess) return failed(NAME, error);
  if (const cudaError_t error = cudaDeviceGetAttribute(&hardware.sm_count, cudaDevAttrMultiProcessorCount, hardware.device_id);
      error != cudaSuccess)
    return failed(NAME, error);
  return SPLICE_CUDA_OK;
}

}  // namespace
}  // namespace splice::cuda

extern "C" {

int64_t splice_cuda_grouped_sm90_workspace(int64_t num_experts) {
  using namespace splice::cuda;
  cutlass::KernelHardwareInfo hardware;
  if (describe_device(hardware) != SPLICE_CUDA_OK) return -1;
  const int64_t few = Few::workspace(num_experts, hardware), many = Many::workspace(num_experts, hardware);
  return few > many ? few : many;
}

int splice_cuda_grouped_sm90_gemm(const splice_cuda_grouped_sm90* args, void* stream) {
  using namespace splice::cuda;
  const splice_cuda_grouped_sm90& a = *args;
  if (a.k <= 0 || a.n <= 0 || a.k % 8 || a.n % 8 || a.num_experts <= 0)
    return fail(SPLICE_CUDA_INVALID, "%s: k %lld and n %lld of %lld experts, expected multiples of 8 and one expert at least", NAME,
                static_cast<long long>(a.k), static_cast<long long>(a.n), static_cast<long long>(a.num_experts));
  if (!aligned(a.x) || !aligned(a.w) || !aligned(a.y) || reinterpret_cast<uintptr_t>(a.workspace) % ALIGNMENT)
    return fail(SPLICE_CUDA_INVALID, "%s: x, w and y must be aligned to 16 bytes, the workspace to %lld", NAME, static_cast<long long>(ALIGNMENT));
  if (a.tile < 0 || a.tile > 1) return fail(SPLICE_CUDA_INVALID, "%s: tile %d, expected 0 or 1", NAME, a.tile);
  cutlass::KernelHardwareInfo hardware;
  if (const int code = describe_device(hardware); code != SPLICE_CUDA_OK) return code;
  return a.tile == 0 ? Few::multiply(a, hardware, stream) : Many::multiply(a, hardware, stream);
}

}
