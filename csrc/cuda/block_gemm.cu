// y = x·Wᵀ (+ bias) of quantised weights and int8 activations, with the bits of csrc/cpu's products (int8_linear.h) on any of its
// instruction sets. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// The arithmetic of an output: from acc = 0, for the blocks b of 32 depths in ascending order
//   acc = fma(W_b · s_b, D_b, acc), then, in forms with a minimum, acc = fma(M_b, S_b, acc),
// where W_b and M_b are the weight's scale and minimum, s_b the activations' scale and S_b that times the sum of their quants
// (quantise_rows.cu), W_b · s_b is rounded to fp32, and D_b is the exact integer Σ quant · activation, of signed quants where
// there is no minimum (Q6_K: the integer sum of its halves' dots times their scales, W_b being what both are multiplied with). Then,
// once, + bias, and the rounding to bf16. Only a NaN that infinite scales make may differ: there the CPU's has a sign.
//
// Moves n·k weights once a tile of rows (4.5 to 8.5 bits each), m·k·1.25 bytes once a tile of columns, and y; 2·m·n·k operations on
// mma.m16n8k32. A fragment of 16 columns, 8 rows and 32 depths also takes 12 fp32 operations a thread, 16 with a minimum, which no
// order of work avoids. Up to some 64 rows it is bound by the weights' bytes, above by issue slots. Counted in the machine code for
// sm_90, not measured: 18.5 slots a fragment in Q4_0, 24 in Q4_1, 29 in Q4_K, so at most 0.41, 0.32 and 0.26 Pop/s on a Hopper; with one
// row 430 cycles of a multiprocessor for 9.2 KB of Q4_0, which is just what 4.8 TB/s bring to each. How work is divided: block_few.h,
// block_many.h.
// Forms of five and six bits are compiled apart, in block_gemm_wide.cu.
#include "block_gemm.h"

extern "C" int splice_cuda_block_gemm(const splice_cuda_block_gemm_args* args, void* stream) {
  using namespace splice::cuda;
  int code = check_block_gemm("block_gemm", *args, CHUNK_BYTES);
  if (code != SPLICE_CUDA_OK || args->m == 0) return code;
  if (!args->scales) return fail(SPLICE_CUDA_INVALID, "block_gemm: the activations' scales are missing");
  code = with_common_form(args->form, [&](auto form) { return multiply_int8<decltype(form)>(*args, stream); });
  if (code == SPLICE_CUDA_UNSUPPORTED) code = multiply_wide_int8(*args, stream);
  if (code == SPLICE_CUDA_UNSUPPORTED) return fail(code, "block_gemm: form %d, expected one of files", args->form);
  return code;
}
