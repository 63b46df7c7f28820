// block_gemm.cu for weights of five and six bits: the same arithmetic and bounds, 5.5 to 6.625 bits a weight. Compiled for sm_80 and
// sm_90; not yet run on a GPU.
//
// Moves and does what block_gemm.cu says. Q6_K takes two matrix instructions a fragment, one for each half of a block, and eight
// integer products.
#include "block_gemm.h"

namespace splice::cuda {

int multiply_wide_int8(const BlockArgs& args, void* stream) {
  return with_wide_form(args.form, [&](auto form) { return multiply_int8<decltype(form)>(args, stream); });
}

}  // namespace splice::cuda
