// Rows of quantised weights as float32: the lookup of an embedding whose matrix is also a product's. Compiled for sm_80 and sm_90;
// not yet run on a GPU.
//
// A value is scale · quant (+ minimum), the product exact but in Q6_K, so rounded once, as csrc/cpu/quant_packing.cpp has it. Of a
// packed panel (block_form.h) a row is every second word of four neighbouring lanes: reads twice its bytes, writes 4 an element: bound
// by memory. A thread takes one block's depths 4·q to 4·q + 3 and the four 16 after. A row that is none comes out as NaN.
#include "block_form.h"
#include "launch.h"

namespace splice::cuda {
namespace {

constexpr int THREADS = 256, WORDS = 4;

// Byte i of a fragment's word as the quant it stands for.
template <class Form>
SPLICE_DEVICE float quant_of(uint32_t word, int i) {
  return static_cast<float>(static_cast<int8_t>(word >> (8 * i) & 255u) / Form::lift);
}

template <class Form>
SPLICE_DEVICE float value_of(float scale, float quant, float minimum) {
  const float value = product(scale, quant);
  return Form::minimum ? sum(value, minimum) : value;
}

template <class Form>
SPLICE_KERNEL __launch_bounds__(THREADS) widen(splice_cuda_block_row_lookup args) {
  const int64_t words = args.k / BLOCK_DEPTH * WORDS, at = block_x() * THREADS + thread_index();
  if (at >= args.rows * words) return;
  const int64_t row = at / words, block = at % words / WORDS, id = args.ids[row];
  const int q = static_cast<int>(at % WORDS), b = static_cast<int>(block % SLICE_BLOCKS);
  auto* to = reinterpret_cast<Chunk*>(args.y + row * args.k + block * BLOCK_DEPTH) + q;
  Chunk low, high;
  if (id < 0 || id >= args.n) {
    SPLICE_UNROLL
    for (int i = 0; i < 4; ++i) low.word[i] = high.word[i] = 0x7fc00000u;
  } else {
    const int column = static_cast<int>(id % PANEL_COLUMNS), lane = column % 8 * 4 + q, above = column / 8;
    const Chunk* slice = static_cast<const Chunk*>(args.w) +
                         (id / PANEL_COLUMNS * slices_of(args.k) + block / SLICE_BLOCKS) * static_cast<int64_t>(Form::slice_chunks);
    uint32_t a[4];
    Form::fragment(slice, b, lane, a);
    const float scale = Form::scale(slice, b, column % 8, above), minimum = Form::value_lowest(slice, b, column % 8, above);
    float halves[2] = {scale, scale};
    if constexpr (Form::paired) {
      const uint32_t own = Form::half_scales(slice, b, column % 8) >> (above * 16);
      SPLICE_UNROLL
      for (int i = 0; i < 2; ++i) halves[i] = product(scale, static_cast<float>(static_cast<int8_t>(own >> (8 * i) & 255u)));
    }
    SPLICE_UNROLL
    for (int i = 0; i < 4; ++i) {
      low.word[i] = bits_of_float(value_of<Form>(halves[0], quant_of<Form>(above ? a[1] : a[0], i), minimum));
      high.word[i] = bits_of_float(value_of<Form>(halves[1], quant_of<Form>(above ? a[3] : a[2], i), minimum));
    }
  }
  to[0] = low;
  to[WORDS] = high;
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_block_rows(const splice_cuda_block_row_lookup* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows < 0 || args->n <= 0 || args->k <= 0 || args->k % BLOCK_DEPTH)
    return fail(SPLICE_CUDA_INVALID, "block_rows: n %lld and k %lld, expected at least 1 and a multiple of 32",
                static_cast<long long>(args->n), static_cast<long long>(args->k));
  if (!aligned(args->w) || !aligned(args->y)) return fail(SPLICE_CUDA_INVALID, "block_rows: w and y must be aligned to 16 bytes");
  const int64_t threads = args->rows * (args->k / BLOCK_DEPTH) * WORDS;
  const auto run = [&](auto form) {
    return launch("block_rows", widen<decltype(form)>, {(threads + THREADS - 1) / THREADS}, THREADS, 0, stream, *args);
  };
  int code = with_common_form(args->form, run);
  if (code == SPLICE_CUDA_UNSUPPORTED) code = with_wide_form(args->form, run);
  if (code == SPLICE_CUDA_UNSUPPORTED && args->form == SPLICE_CUDA_BLOCK_4_GROUPS) code = run(BlockForm<4, Groups>{});
  if (code == SPLICE_CUDA_UNSUPPORTED) return fail(code, "block_rows: form %d, which is none", args->form);
  return code;
}
