// What the products of e4m3 codes check before they launch.
#pragma once

#include "launch.h"

namespace splice::cuda {

inline int check_gemm_fp8(const char* name, const splice_cuda_gemm_fp8& args, int tiles) {
  if (args.m < 0 || args.k <= 0 || args.n <= 0 || args.k % 16 || args.n % 8 || args.x_stride % 16 || args.w_stride % 16 || args.y_stride % 8)
    return fail(SPLICE_CUDA_INVALID, "%s: k %lld, n %lld and strides, expected multiples of 16 along k and of 8 along n", name,
                static_cast<long long>(args.k), static_cast<long long>(args.n));
  if (!aligned(args.x) || !aligned(args.w) || !aligned(args.y) || !aligned(args.bias))
    return fail(SPLICE_CUDA_INVALID, "%s: x, w, y and bias must be aligned to 16 bytes", name);
  if (args.tile < 0 || args.tile >= tiles)
    return fail(SPLICE_CUDA_INVALID, "%s: tile %d, expected 0 to %d", name, args.tile, tiles - 1);
  return SPLICE_CUDA_OK;
}

}  // namespace splice::cuda
