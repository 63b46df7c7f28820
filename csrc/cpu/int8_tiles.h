// The products of int8_linear.h for 16 rows and more on AMX-INT8: the same integers, the same chain of fp32 operations, the same
// bits. Included for AMX only. Compiled for AMX, run under an emulation of its tiles (emulation/tiles.h) against the other
// instruction sets; never run on hardware that has them, so nothing here was measured and shapes are chosen by counting.
//
// A block of 32 depths is one tdpbssd: 16 rows of activations, 32 bytes each as Int8Block has them, times 8 × 16 words of weights,
// which are the groups of quant_layout.h. The 16 × 16 integers go through memory into fp32 chains that stay in 16 registers for
// all of k; the next block's product is asked for before this one's integers are scaled, so that the two units work side by side.
// A block of 16 × 16 outputs is 16,384 operations: 16 cycles of the tile unit (half of its depth stays empty, since scales change
// every 32), and 64 vector operations with a minimum, 48 without, on two ports: 32 or 24 cycles, so 512 or 680 operations a cycle.
#pragma once

#include "int8_blocks.h"
#include "kernels.h"

namespace {

using splice::cpu::Int8Block;

constexpr int64_t INT8_TILE_ROWS = 16;

// Once quants are signed bytes, types differ in this alone; Q6_K scales the halves of a block apart, so has two tiles of them.
enum class TileForm { PLAIN, MINIMUM, PAIRED };
constexpr TileForm tile_form(int dtype) {
  return dtype == SPLICE_CPU_Q6_K ? TileForm::PAIRED : has_minimum(dtype) ? TileForm::MINIMUM : TileForm::PLAIN;
}

// A block of a panel as tiles take it: `[parts][8][16]` words, scales `[16]` fp32, then minima `[16]` or the scales of both halves
// as words `[2][16]`.
constexpr int64_t TILE_WORDS = GROUPS * LANES * 4;
constexpr int64_t tile_parts(TileForm form) { return form == TileForm::PAIRED ? 2 : 1; }
constexpr int64_t tile_block_bytes(TileForm form) {
  const int64_t others = form == TileForm::PLAIN ? 1 : form == TileForm::MINIMUM ? 2 : 3;
  return tile_parts(form) * TILE_WORDS + others * LANES * 4;
}
constexpr int64_t TILE_SLAB_BLOCK = tile_block_bytes(TileForm::PAIRED);  // room for any of them

// quant - offset of four bytes each; quants and offsets are below 128, so no byte borrows from the next.
template <int OFFSET>
SPLICE_INLINE W16 signed_quants(W16 quants) {
  if constexpr (OFFSET == 0) return quants;
  const W16 tops = splat_word(0x80808080u);
  return ((quants | tops) - splat_word(0x01010101u * OFFSET)) ^ tops;
}

template <int DTYPE, int G>
SPLICE_INLINE void fill_tile_groups(const PackedBlock<DTYPE>& block, uint8_t* dst) {
  const W16 quants = signed_quants<splice::cpu::quant_offset(DTYPE)>(block.template group<G>());
  uint8_t* row = dst + G * LANES * 4;
  if constexpr (tile_form(DTYPE) == TileForm::PAIRED) {
    store_words(row, quants & splat_word(0x0000ffffu));
    store_words(row + TILE_WORDS, quants & splat_word(0xffff0000u));
  } else {
    store_words(row, quants);
  }
  if constexpr (G + 1 < GROUPS) fill_tile_groups<DTYPE, G + 1>(block, dst);
}

// All blocks of one panel, ready for tiles.
template <int DTYPE>
void fill_tile_slab(const uint8_t* panel, int64_t blocks, uint8_t* slab) {
  constexpr TileForm FORM = tile_form(DTYPE);
  for (int64_t b = 0; b < blocks; ++b, slab += tile_block_bytes(FORM)) {
    PackedBlock<DTYPE> block;
    block.open(panel, b);
    fill_tile_groups<DTYPE, 0>(block, slab);
    float* scales = reinterpret_cast<float*>(slab + tile_parts(FORM) * TILE_WORDS);
    store(scales, block.scale());
    if constexpr (FORM == TileForm::MINIMUM) store(scales + LANES, block.minimum());
    if constexpr (FORM == TileForm::PAIRED) {
      store_words(scales + LANES, shift_signed<16>(shift_left<16>(block.pair())));
      store_words(scales + 2 * LANES, shift_signed<16>(block.pair()));
    }
  }
}

// sums[part][16 rows][16 columns] of one block. Tiles 0 and 1 hold sums, 2 and 3 activations, 4 and 5 weights: two of each, for
// neighbouring blocks.
template <int PARITY, TileForm FORM>
SPLICE_INLINE void tile_sums(const Int8Block* a, int64_t a_row, const uint8_t* weights, int32_t* sums) {
  const long stride = static_cast<long>(a_row * static_cast<int64_t>(sizeof(Int8Block)));
  asm volatile("" ::: "memory");  // gcc does not know that tile loads read memory
  for (int64_t part = 0; part < tile_parts(FORM); ++part, weights += TILE_WORDS, sums += INT8_TILE_ROWS * LANES) {
    if constexpr (PARITY == 0) {
      if (part == 0) _tile_loadd(2, a->quants, stride);
      _tile_loadd(4, weights, LANES * 4);
      _tile_zero(0);
      _tile_dpbssd(0, 2, 4);
      _tile_stored(0, sums, LANES * 4);
    } else {
      if (part == 0) _tile_loadd(3, a->quants, stride);
      _tile_loadd(5, weights, LANES * 4);
      _tile_zero(1);
      _tile_dpbssd(1, 3, 5);
      _tile_stored(1, sums, LANES * 4);
    }
  }
}

// One block's step of the 16 chains.
template <TileForm FORM>
SPLICE_INLINE void scale_sums(F16 (&acc)[INT8_TILE_ROWS], const Int8Block* a, int64_t a_row, const uint8_t* weights,
                              const int32_t* sums) {
  const float* scales = reinterpret_cast<const float*>(weights + tile_parts(FORM) * TILE_WORDS);
  const F16 scale = load(scales);
  F16 minimum = zero();
  W16 low = splat_word(0), high = splat_word(0);
  if constexpr (FORM == TileForm::MINIMUM) minimum = load(scales + LANES);
  if constexpr (FORM == TileForm::PAIRED) {
    low = load_words(scales + LANES);
    high = load_words(scales + 2 * LANES);
  }
#pragma GCC unroll 16
  for (int r = 0; r < INT8_TILE_ROWS; ++r) {
    const Int8Block& x = a[r * a_row];
    W16 total = load_words(sums + r * LANES);
    if constexpr (FORM == TileForm::PAIRED) {
      const W16 other = load_words(sums + (INT8_TILE_ROWS + r) * LANES);
      total = add_words({_mm512_mullo_epi32(total.v, low.v)}, {_mm512_mullo_epi32(other.v, high.v)});
    }
    acc[r] = fma(mul(scale, splat(x.scale)), to_float(total), acc[r]);
    if constexpr (FORM == TileForm::MINIMUM) acc[r] = fma(minimum, splat(x.scaled_sum), acc[r]);
  }
}

// c[16][16]: 16 rows of activations, `a_row` blocks apart, over one panel.
template <TileForm FORM>
__attribute__((noinline)) void int8_amx_tile(const Int8Block* a, int64_t a_row, const uint8_t* slab, int64_t blocks, float* c) {
  constexpr int64_t STEP = tile_block_bytes(FORM);
  alignas(64) int32_t sums[2][tile_parts(FORM) * INT8_TILE_ROWS * LANES];
  F16 acc[INT8_TILE_ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < INT8_TILE_ROWS; ++r) acc[r] = zero();
  if (blocks > 0) tile_sums<0, FORM>(a, a_row, slab, sums[0]);
  for (int64_t b = 0; b < blocks; b += 2, a += 2, slab += 2 * STEP) {
    const bool second = b + 1 < blocks;
    if (second) tile_sums<1, FORM>(a + 1, a_row, slab + STEP, sums[1]);
    scale_sums<FORM>(acc, a, a_row, slab, sums[0]);
    if (!second) break;
    if (b + 2 < blocks) tile_sums<0, FORM>(a + 2, a_row, slab + 2 * STEP, sums[0]);
    scale_sums<FORM>(acc, a + 1, a_row, slab + STEP, sums[1]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < INT8_TILE_ROWS; ++r) store(c + r * LANES, acc[r]);
}

// As int8_product, of at least 16 rows and in a session (tile_session.h). The last tile begins where 16 rows are left: rows that two
// tiles share get the same bits twice.
SPLICE_INLINE void int8_tile_product(const splice::cpu::LinearArgs& args, int64_t panel, int64_t panels, int64_t first_row,
                                     int64_t rows, float* c, uint8_t* slab) {
  const int64_t blocks = args.k / splice::cpu::INT8_DEPTH, stride = splice::cpu::quant_panel_bytes(args.dtype, args.k);
  const Int8Block* a = args.x8 + first_row * blocks;
  const uint8_t* weights = static_cast<const uint8_t*>(args.packed) + panel * stride;
  with_quant(args.dtype, [&]<int DTYPE>() {
    for (int64_t p = 0; p < panels; ++p, c += rows * LANES) {
      fill_tile_slab<DTYPE>(weights + p * stride, blocks, slab);
      for (int64_t tile = 0; tile < rows; tile += INT8_TILE_ROWS) {
        const int64_t row = tile + INT8_TILE_ROWS <= rows ? tile : rows - INT8_TILE_ROWS;
        int8_amx_tile<tile_form(DTYPE)>(a + row * blocks, blocks, slab, blocks, c + row * LANES);
      }
    }
  });
}

}  // namespace
