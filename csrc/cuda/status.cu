// What the library is, what it was built from and for, and the text of the last error of each thread.
#include <stdarg.h>
#include <stdio.h>

#include "launch.h"

// Whoever compiles this file says them; the emulator's build does not.
#if !defined(SPLICE_CUDA_SOURCES)
#define SPLICE_CUDA_SOURCES unknown
#endif
#if !defined(SPLICE_CUDA_TARGETS)
#define SPLICE_CUDA_TARGETS
#endif
#define SPLICE_QUOTED(...) #__VA_ARGS__
#define SPLICE_TEXT(...) SPLICE_QUOTED(__VA_ARGS__)

namespace splice::cuda {

namespace {
thread_local char text[512] = "";
}

int fail(int code, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  return code;
}

}  // namespace splice::cuda

extern "C" {

int splice_cuda_abi(void) { return SPLICE_CUDA_ABI; }

int splice_cuda_emulated(void) {
#if defined(__CUDACC__)
  return 0;
#else
  return 1;
#endif
}

const char* splice_cuda_sources(void) { return SPLICE_TEXT(SPLICE_CUDA_SOURCES); }
const char* splice_cuda_targets(void) { return SPLICE_TEXT(SPLICE_CUDA_TARGETS); }

int splice_cuda_runtime(void) {
#if defined(__CUDACC__)
  return CUDART_VERSION;
#else
  return 0;
#endif
}

const char* splice_cuda_error(void) { return splice::cuda::text; }

#if !defined(__CUDACC__)
// Of the emulator alone: the order in which the threads of a block run. No result may depend on it.
void splice_cuda_emulator_seed(uint64_t value) { splice::cuda::emulator::seed() = value; }
// And the shared memory a block may have there.
void splice_cuda_emulator_shared_bytes(int64_t value) { splice::cuda::emulator::shared_limit() = value; }
// And how many matrix loads since the last call took more than one access a matrix.
int64_t splice_cuda_emulator_bank_conflicts() {
  const int64_t found = splice::cuda::emulator::bank_conflicts();
  splice::cuda::emulator::bank_conflicts() = 0;
  return found;
}
#endif

}
