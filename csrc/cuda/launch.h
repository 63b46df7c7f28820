// How a kernel is launched, and how a function says what was wrong.
#pragma once

#include "platform.h"
#include "splice_cuda.h"

namespace splice::cuda {

// Keeps the text for splice_cuda_error() and returns the code.
int fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

constexpr int64_t MAX_GRID_X = (int64_t{1} << 31) - 1, MAX_GRID_YZ = 65535;

struct GridSize {
  int64_t x, y = 1, z = 1;
};

#if defined(__CUDACC__)

inline int failed(const char* what, cudaError_t error) {
  return fail(SPLICE_CUDA_FAILED, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

// Arguments are copied. A grid without blocks is no launch.
template <class... Params, class... Args>
int launch(const char* name, void (*kernel)(Params...), GridSize grid, int threads, size_t shared_bytes, void* stream, Args... args) {
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return SPLICE_CUDA_OK;
  if (grid.x > MAX_GRID_X || grid.y > MAX_GRID_YZ || grid.z > MAX_GRID_YZ)
    return fail(SPLICE_CUDA_INVALID, "%s: %lld x %lld x %lld blocks are more than a grid holds", name, static_cast<long long>(grid.x),
                static_cast<long long>(grid.y), static_cast<long long>(grid.z));
  if (shared_bytes > 48 << 10) {
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
  emulator::run({grid.x, grid.y, grid.z}, threads, shared_bytes, [&] { kernel(static_cast<Params>(args)...); });
  return SPLICE_CUDA_OK;
}

#endif

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % CHUNK_BYTES == 0; }

}  // namespace splice::cuda
