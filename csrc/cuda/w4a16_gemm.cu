// y = x·Wᵀ (+ bias) of weights of four bits and bfloat16 activations. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// The arithmetic of an output: from acc = 0, for the blocks b of 32 depths in ascending order
//   acc = fma(W_b, P_b, acc), then, in forms with a minimum, acc = fma(M_b, X_b, acc),
// where W_b and M_b are the weight's scale and minimum, P_b = Σ quant · x and X_b = Σ x over the block, both in float32 by two
// mma.m16n8k16 from zero, depths 0 to 15 and 16 to 31. Quants are exact in bfloat16, so no weight is rounded, and no k is split. What
// the matrix unit does within an instruction is the hardware's: bits are one GPU generation's, not the CPU's.
//
// Moves n·k weights once a tile of rows (4.25 to 5 bits each), 2·m·k bytes once a tile of columns, and y; 2·m·n·k operations. Up to
// some 64 rows bound by the weights' bytes, above by issue slots: two matrix instructions for a fragment of 16 columns, 8 rows and 32
// depths, 4 fp32 operations, 8 with a minimum, and its share of unpacking. Counted in the machine code for sm_90, not measured: 18 slots
// a fragment in Q4_0, so at most 0.41 Pflop/s on a Hopper. How work is divided: block_few.h, block_many.h.
#include "block_gemm.h"

extern "C" int splice_cuda_w4a16_gemm(const splice_cuda_block_gemm_args* args, void* stream) {
  using namespace splice::cuda;
  int code = check_block_gemm("w4a16_gemm", *args, CHUNK_BYTES / 2);
  if (code != SPLICE_CUDA_OK || args->m == 0) return code;
  if (args->scales) return fail(SPLICE_CUDA_INVALID, "w4a16_gemm: activations in bfloat16 have no scales");
  code = with_nibbles(args->form, [&](auto form) {
    using Form = decltype(form);
    return multiply<Form, Bf16Rows<Form>>("w4a16_gemm", *args, stream);
  });
  if (code == SPLICE_CUDA_UNSUPPORTED) return fail(code, "w4a16_gemm: form %d, expected one of four bits", args->form);
  return code;
}
