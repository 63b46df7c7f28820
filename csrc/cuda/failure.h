// How a function says what was wrong.
#pragma once

#include "platform.h"
#include "splice_cuda.h"

namespace splice::cuda {

// Keeps the text for splice_cuda_error() and returns the code.
int fail(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

#if defined(__CUDACC__)

// The runtime keeps the error, too, until it is asked for it: the next launch would be told of this one's.
inline int failed(const char* what, cudaError_t error) {
  cudaGetLastError();
  return fail(SPLICE_CUDA_FAILED, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

#endif

}  // namespace splice::cuda
