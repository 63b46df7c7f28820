// What the current device offers a launch. Nothing that is computed may depend on it: only how work is divided.
#pragma once

#include "failure.h"

namespace splice::cuda {

struct DeviceLimits {
  int64_t shared_bytes;  // that a block may ask for
  int64_t multiprocessors;
};

#if defined(__CUDACC__)

inline int read_limits(const char* name, DeviceLimits& limits) {
  int device = 0, bytes = 0, count = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  limits = {bytes, count};
  return error == cudaSuccess ? SPLICE_CUDA_OK : failed(name, error);
}

#else

// Few multiprocessors, so that persistent blocks go round more than once.
inline int read_limits(const char*, DeviceLimits& limits) {
  limits = {emulator::shared_limit(), 2};
  return SPLICE_CUDA_OK;
}

#endif

// So much a block has on every GPU, without asking for it.
constexpr int64_t SHARED_EVERYWHERE = 48 << 10;
// And so much when it asks on the smallest we compute on: GPUs that are not for data centers, from Ampere on. An A100 has 163 KiB.
constexpr int64_t SHARED_OF_SMALL = 99 << 10;

// Whether the current device gives a block so much. Every launch of ours comes by here; those of CUTLASS need less than the smallest
// has (gemm_sm80) or are for Hopper alone.
inline int check_shared(const char* name, int64_t needed) {
  if (needed <= SHARED_EVERYWHERE) return SPLICE_CUDA_OK;
  DeviceLimits limits;
  if (const int code = read_limits(name, limits); code != SPLICE_CUDA_OK) return code;
  if (needed <= limits.shared_bytes) return SPLICE_CUDA_OK;
  return fail(SPLICE_CUDA_UNSUPPORTED, "%s: a block needs %lld bytes of shared memory and has %lld on this GPU: use another, or --device cpu", name,
              static_cast<long long>(needed), static_cast<long long>(limits.shared_bytes));
}

}  // namespace splice::cuda
