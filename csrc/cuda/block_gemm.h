// What the units of products with quantised weights share: the choice of a tile, and what is checked before.
#pragma once

#include "block_few.h"
#include "block_many.h"

namespace splice::cuda {

template <class Form, class Rows>
int multiply(const char* name, const BlockArgs& args, void* stream) {
  switch (args.tile) {
    case 0: return few<Form, Rows, 1>(name, args, stream);
    case 1: return few<Form, Rows, 2>(name, args, stream);
    case 2: return many<Form, Rows>(name, args, stream);
    default: return fail(SPLICE_CUDA_INVALID, "%s: tile %d, expected 0 to 2", name, args.tile);
  }
}

constexpr int64_t MAX_DEPTH = int64_t{1} << 30;

inline int check_block_gemm(const char* name, const BlockArgs& args, int chunk_elements) {
  if (args.m < 0 || args.n <= 0 || args.k <= 0 || args.k > MAX_DEPTH || args.k % BLOCK_DEPTH || args.x_stride % chunk_elements)
    return fail(SPLICE_CUDA_INVALID, "%s: n %lld, k %lld, x_stride %lld, expected at least 1, a multiple of 32 to 2^30, one of %d", name,
                static_cast<long long>(args.n), static_cast<long long>(args.k), static_cast<long long>(args.x_stride), chunk_elements);
  if (!aligned(args.x) || !aligned(args.scales) || !aligned(args.w))
    return fail(SPLICE_CUDA_INVALID, "%s: x, scales and w must be aligned to 16 bytes", name);
  return SPLICE_CUDA_OK;
}

template <class Form>
int multiply_int8(const BlockArgs& args, void* stream) {
  return multiply<Form, Int8Rows<Form>>("block_gemm", args, stream);
}

// Forms of five and six bits; SPLICE_CUDA_UNSUPPORTED for others.
int multiply_wide_int8(const BlockArgs& args, void* stream);

}  // namespace splice::cuda
