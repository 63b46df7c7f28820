// How a kernel is launched.
#pragma once

#include "device_limits.h"

namespace splice::cuda {

constexpr int64_t MAX_GRID_X = (int64_t{1} << 31) - 1, MAX_GRID_YZ = 65535;

struct GridSize {
  int64_t x, y = 1, z = 1;
};

#if defined(__CUDACC__)

// Arguments are copied. A grid without blocks is no launch.
template <class... Params, class... Args>
int launch(const char* name, void (*kernel)(Params...), GridSize grid, int threads, size_t shared_bytes, void* stream, Args... args) {
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return SPLICE_CUDA_OK;
  if (grid.x > MAX_GRID_X || grid.y > MAX_GRID_YZ || grid.z > MAX_GRID_YZ)
    return fail(SPLICE_CUDA_INVALID, "%s: %lld x %lld x %lld blocks are more than a grid holds", name, static_cast<long long>(grid.x),
                static_cast<long long>(grid.y), static_cast<long long>(grid.z));
  if (shared_bytes > SHARED_EVERYWHERE) {
    if (const int code = check_shared(name, shared_bytes); code != SPLICE_CUDA_OK) return code;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return failed(name, error);
  }
  const dim3 size(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  kernel<<<size, static_cast<unsigned>(threads), shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<Params>(args)...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? SPLICE_CUDA_OK : failed(name, error);
}

#else

template <class... Params, class... Args>
int launch(const char* name, void (*kernel)(Params...), GridSize grid, int threads, size_t shared_bytes, void*, Args... args) {
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return SPLICE_CUDA_OK;
  if (grid.x > MAX_GRID_X || grid.y > MAX_GRID_YZ || grid.z > MAX_GRID_YZ)
    return fail(SPLICE_CUDA_INVALID, "%s: more blocks than a grid holds", name);
  if (const int code = check_shared(name, shared_bytes); code != SPLICE_CUDA_OK) return code;
  emulator::run({grid.x, grid.y, grid.z}, threads, shared_bytes, [&] { kernel(static_cast<Params>(args)...); });
  return SPLICE_CUDA_OK;
}

#endif

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % CHUNK_BYTES == 0; }

}  // namespace splice::cuda
