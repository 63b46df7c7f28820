// What kernels are written in: CUDA, or, under a plain C++ compiler, the emulator that runs the same source on the CPU.
//
// Kernels use the operations of this header and no CUDA built-in of another kind, so that everything they do but speed is
// tested on a machine without a GPU: indices, masks, barriers, fragments of matrix instructions, asynchronous copies.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define SPLICE_BOTH __host__ __device__ __forceinline__
#define SPLICE_DEVICE __device__ __forceinline__
#define SPLICE_KERNEL __global__ void
#define SPLICE_UNROLL _Pragma("unroll")
#define SPLICE_UNROLL_BY_8 _Pragma("unroll 8")
#define SPLICE_ROLLED _Pragma("unroll 1")

#include "device_operations.h"

#else

#define SPLICE_BOTH inline
#define SPLICE_DEVICE inline
#define SPLICE_KERNEL static void
#define SPLICE_UNROLL
#define SPLICE_UNROLL_BY_8
#define SPLICE_ROLLED
#define __launch_bounds__(...)

#include "emulator/emulator.h"

#endif

namespace splice::cuda {

constexpr int WARP = 32;

// 16 bytes, moved by one instruction.
struct alignas(16) Chunk {
  uint32_t word[4];
};
constexpr int CHUNK_BYTES = sizeof(Chunk);

}  // namespace splice::cuda
