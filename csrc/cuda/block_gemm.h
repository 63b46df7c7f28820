// What the two units of block_gemm share.
#pragma once

#include "block_tile.h"

namespace splice::cuda {

template <class Form>
int multiply_int8(const BlockArgs& args, void* stream) {
  return multiply<Form, Int8Rows<Form>>("block_gemm", args, stream);
}

// Forms of five and six bits; SPLICE_CUDA_UNSUPPORTED for others.
int multiply_wide_int8(const BlockArgs& args, void* stream);

}  // namespace splice::cuda
