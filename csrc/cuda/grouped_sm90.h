// A product of groups, one an expert, through CUTLASS 3.x on Hopper: what the kernels of bfloat16 and of e4m3 codes share.
//
// Sizes and addresses of groups are written by a kernel from the counts that permute left on the device; the grid is that of the device,
// and tiles are dealt out there: a launch knows no count.
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/operations.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "launch.h"

namespace splice::cuda::grouped {

constexpr int64_t ALIGNMENT = 256;

using Bf16 = cutlass::bfloat16_t;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
using Cluster = cute::Shape<cute::_1, cute::_1, cute::_1>;
using Size = cute::Shape<int, int, int>;
using cute::_0, cute::_1, cute::_32, cute::_64, cute::_128, cute::_256;

// What a launch reads of its groups, in the workspace: arrays of one element an expert. XScales says how scales of blocks of x lie;
// where there are none it is char.
template <class Kernel, class XScales = char>
struct Groups {
  using Element = typename Kernel::ElementA;
  using StrideA = typename Kernel::InternalStrideA;
  using StrideB = typename Kernel::InternalStrideB;
  using StrideD = typename Kernel::InternalStrideD;
  static constexpr bool has_blocks = !cute::is_same_v<XScales, char>;
  Size* sizes;
  const Element **a, **b;
  Bf16** d;
  StrideA* a_strides;
  StrideB* b_strides;
  StrideD* d_strides;
  const float **x_scales, **w_scales;
  XScales* x_layouts;
  int64_t bytes = 0;

  Groups(void* workspace, int64_t count) {
    take(sizes, workspace, count);
    take(a, workspace, count);
    take(b, workspace, count);
    take(d, workspace, count);
    take(a_strides, workspace, count);
    take(b_strides, workspace, count);
    take(d_strides, workspace, count);
    take(x_scales, workspace, count);
    take(w_scales, workspace, count);
    take(x_layouts, workspace, has_blocks ? count : 0);
  }

 private:
  template <class T>
  void take(T*& array, void* workspace, int64_t count) {
    array = reinterpret_cast<T*>(static_cast<char*>(workspace) + bytes);
    bytes += (count * static_cast<int64_t>(sizeof(T)) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }
};

// `w_scales` is how many an expert has; `x_scale_stride` is that of scales of blocks.
template <bool exchanged, class Groups>
__global__ void describe(splice_cuda_grouped_sm90 args, int64_t w_scales, int64_t x_scale_stride, Groups groups) {
  using Element = typename Groups::Element;
  const int expert = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (expert >= args.num_experts) return;
  const int rows = args.counts[expert], n = static_cast<int>(args.n), k = static_cast<int>(args.k);
  const int64_t first = args.offsets[expert];
  const Element *x = static_cast<const Element*>(args.x) + first * k, *w = static_cast<const Element*>(args.w) + expert * args.n * k;
  groups.sizes[expert] = exchanged ? Size{n, rows, k} : Size{rows, n, k};
  groups.a[expert] = exchanged ? w : x;
  groups.b[expert] = exchanged ? x : w;
  groups.d[expert] = static_cast<Bf16*>(args.y) + first * n;
  cute::get<0>(groups.a_strides[expert]) = k;
  cute::get<0>(groups.b_strides[expert]) = k;
  cute::get<exchanged ? 1 : 0>(groups.d_strides[expert]) = n;
  groups.x_scales[expert] = args.x_scales + first;
  groups.w_scales[expert] = args.w_scales + expert * w_scales;
  if constexpr (Groups::has_blocks) cute::get<1>(cute::get<1>(groups.x_layouts[expert].stride())) = static_cast<int>(x_scale_stride);
}

// w scale · (x scale · sum), of rows of x and of W; D's rows are x's or, exchanged, W's. Those of x begin wherever an expert's rows do.
template <bool exchanged, class Tile>
struct Scaling {
  template <class Scales>
  using Product = cutlass::epilogue::fusion::Sm90Compute<cutlass::multiplies, Scales, float, cutlass::FloatRoundStyle::round_to_nearest>;
  template <int alignment>
  using OfRows = cutlass::epilogue::fusion::Sm90ColBroadcast<0, Tile, float*, float, cute::Stride<_1, _0, _0>, alignment>;
  template <int alignment>
  using OfColumns = cutlass::epilogue::fusion::Sm90RowBroadcast<0, Tile, float*, float, cute::Stride<_0, _1, _0>, alignment>;
  using X = cute::conditional_t<exchanged, OfColumns<1>, OfRows<1>>;
  using W = cute::conditional_t<exchanged, OfRows<4>, OfColumns<4>>;
  using Inner = cutlass::epilogue::fusion::Sm90EVT<Product<float>, X, cutlass::epilogue::fusion::Sm90AccFetch>;
  using Fusion = cutlass::epilogue::fusion::Sm90EVT<Product<Bf16>, W, Inner>;
};

// A [M, K] and B [N, K] of each group, both with contiguous k; D is [M, N], row major or, exchanged, column major.
template <class Element, bool is_scaled, bool exchanged, class Tile, class Mainloop, class Epilogue>
struct Product {
  static constexpr int alignment = 16 / sizeof(Element);
  using Layout = cute::conditional_t<exchanged, ColumnMajor, RowMajor>;
  using Fusion = cute::conditional_t<is_scaled, typename Scaling<exchanged, Tile>::Fusion,
                                     cutlass::epilogue::fusion::LinearCombination<Bf16, float, void, float>>;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
      Layout*, 8, Bf16, Layout*, 8, Epilogue, Fusion>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, RowMajor*, alignment, Element, ColumnMajor*, alignment, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename CollectiveEpilogue::SharedStorage))>,
      Mainloop>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<Size>, CollectiveMainloop, CollectiveEpilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Own = Groups<Kernel>;
  static constexpr bool has_exchanged = exchanged;

  static typename Gemm::Arguments arguments(const Own& groups, int64_t count, const cutlass::KernelHardwareInfo& hardware) {
    typename Gemm::Arguments made{cutlass::gemm::GemmUniversalMode::kGrouped,
                                  {static_cast<int>(count), groups.sizes, nullptr},
                                  {groups.a, groups.a_strides, groups.b, groups.b_strides},
                                  {{}, nullptr, nullptr, groups.d, groups.d_strides},
                                  hardware};
    if constexpr (is_scaled) made.epilogue.thread = {{groups.w_scales}, {{groups.x_scales}, {}, {}}, {}};
    return made;
  }
  static int64_t w_scales(const splice_cuda_grouped_sm90& args) { return args.n; }
};

template <class Product>
int64_t workspace_of(int64_t count, const cutlass::KernelHardwareInfo& hardware) {
  const typename Product::Own groups(nullptr, count);
  return groups.bytes + static_cast<int64_t>(Product::Gemm::get_workspace_size(Product::arguments(groups, count, hardware)));
}

template <class Product>
int start(const char* name, const splice_cuda_grouped_sm90& args, int64_t x_scale_stride, const cutlass::KernelHardwareInfo& hardware, void* stream) {
  using Own = typename Product::Own;
  const Own groups(args.workspace, args.num_experts);
  const int64_t blocks = (args.num_experts + 127) / 128;
  if (const int code = launch(name, describe<Product::has_exchanged, Own>, {blocks}, 128, 0, stream, args, Product::w_scales(args), x_scale_stride, groups);
      code != SPLICE_CUDA_OK)
    return code;
  const typename Product::Gemm::Arguments made = Product::arguments(groups, args.num_experts, hardware);
  auto* on = static_cast<cudaStream_t>(stream);
  typename Product::Gemm gemm;
  cutlass::Status status = gemm.can_implement(made);
  if (status == cutlass::Status::kSuccess) status = gemm.initialize(made, static_cast<char*>(args.workspace) + groups.bytes, on);
  if (status == cutlass::Status::kSuccess) status = gemm.run(on);
  if (status != cutlass::Status::kSuccess) return fail(SPLICE_CUDA_FAILED, "%s: %s", name, cutlass::cutlassGetStatusString(status));
  return SPLICE_CUDA_OK;
}

inline int describe_device(const char* name, cutlass::KernelHardwareInfo& hardware) {
  if (const cudaError_t error = cudaGetDevice(&hardware.device_id); error != cudaSuccess) return failed(name, error);
  if (const cudaError_t error = cudaDeviceGetAttribute(&hardware.sm_count, cudaDevAttrMultiProcessorCount, hardware.device_id);
      error != cudaSuccess)
    return failed(name, error);
  return SPLICE_CUDA_OK;
}

// Bytes that either product needs, or −1.
template <class Few, class Many>
int64_t workspace(const char* name, int64_t num_experts) {
  cutlass::KernelHardwareInfo hardware;
  if (describe_device(name, hardware) != SPLICE_CUDA_OK) return -1;
  const int64_t few = workspace_of<Few>(num_experts, hardware), many = workspace_of<Many>(num_experts, hardware);
  return few > many ? few : many;
}

// `multiple`: of k, so that rows of x and W are multiples of 16 bytes.
template <class Few, class Many>
int multiply(const char* name, const splice_cuda_grouped_sm90& args, int multiple, void* stream, int64_t x_scale_stride = 0) {
  if (args.k <= 0 || args.n <= 0 || args.k % multiple || args.n % 8 || args.num_experts <= 0)
    return fail(SPLICE_CUDA_INVALID, "%s: k %lld and n %lld of %lld experts, expected multiples of %d and 8, and one expert at least", name,
                static_cast<long long>(args.k), static_cast<long long>(args.n), static_cast<long long>(args.num_experts), multiple);
  if (!aligned(args.x) || !aligned(args.w) || !aligned(args.y) || !aligned(args.w_scales) ||
      reinterpret_cast<uintptr_t>(args.workspace) % ALIGNMENT)
    return fail(SPLICE_CUDA_INVALID, "%s: x, w, its scales and y must be aligned to 16 bytes, the workspace to %lld", name,
                static_cast<long long>(ALIGNMENT));
  if (args.tile < 0 || args.tile > 1) return fail(SPLICE_CUDA_INVALID, "%s: tile %d, expected 0 or 1", name, args.tile);
  cutlass::KernelHardwareInfo hardware;
  if (const int code = describe_device(name, hardware); code != SPLICE_CUDA_OK) return code;
  return args.tile == 0 ? start<Few>(name, args, x_scale_stride, hardware, stream) : start<Many>(name, args, x_scale_stride, hardware, stream);
}

}  // namespace splice::cuda::grouped
