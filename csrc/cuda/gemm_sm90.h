// How a product of CUTLASS 3.x is started: what every one on Hopper does between its arguments and its launch.
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/operations.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "launch.h"

namespace splice::cuda {

// How many neighbouring tiles of the shorter side are taken before the next of the longer one, so that those at work at one time
// read few rows of both operands from memory; 1 where the scheduler would fill up the grid with empty tiles. No bit depends on it.
template <class Gemm>
int tiles_abreast(int64_t m, int64_t n) {
  using Kernel = typename Gemm::GemmKernel;
  const int64_t tile_m = cute::size<0>(typename Kernel::TileShape{}), tile_n = cute::size<1>(typename Kernel::TileShape{});
  const int64_t rows = (m + tile_m - 1) / tile_m, columns = (n + tile_n - 1) / tile_n;
  int abreast = 8;
  while (abreast > 1 && (rows % (abreast * cute::size<0>(typename Kernel::ClusterShape{})) ||
                         columns % (abreast * cute::size<1>(typename Kernel::ClusterShape{}))))
    abreast /= 2;
  return abreast;
}

template <class Gemm>
int start_product(const char* name, typename Gemm::Arguments& arguments, cudaStream_t stream) {
  cutlass::KernelHardwareInfo& hardware = arguments.hw_info;
  if (const cudaError_t error = cudaGetDevice(&hardware.device_id); error != cudaSuccess) return failed(name, error);
  if (const cudaError_t error = cudaDeviceGetAttribute(&hardware.sm_count, cudaDevAttrMultiProcessorCount, hardware.device_id);
      error != cudaSuccess)
    return failed(name, error);
  arguments.scheduler.max_swizzle_size = tiles_abreast<Gemm>(cute::get<0>(arguments.problem_shape), cute::get<1>(arguments.problem_shape));
  Gemm gemm;
  cutlass::Status status = gemm.can_implement(arguments);
  if (status == cutlass::Status::kSuccess && Gemm::get_workspace_size(arguments) != 0)
    return fail(SPLICE_CUDA_FAILED, "%s: this tile wants a workspace, which a product without a split of k must not", name);
  if (status == cutlass::Status::kSuccess) status = gemm.initialize(arguments, nullptr, stream);
  if (status == cutlass::Status::kSuccess) status = gemm.run(stream);
  if (status != cutlass::Status::kSuccess) return fail(SPLICE_CUDA_FAILED, "%s: %s", name, cutlass::cutlassGetStatusString(status));
  return SPLICE_CUDA_OK;
}

}  // namespace splice::cuda
