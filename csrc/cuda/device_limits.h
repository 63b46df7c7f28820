// What the current device offers a launch. Nothing that is computed may depend on it: only how work is divided.
#pragma once

#include "launch.h"

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

// As large as Hopper, and few multiprocessors, so that persistent blocks go round more than once.
inline int read_limits(const char*, DeviceLimits& limits) {
  limits = {227 << 10, 2};
  return SPLICE_CUDA_OK;
}

#endif

}  // namespace splice::cuda
