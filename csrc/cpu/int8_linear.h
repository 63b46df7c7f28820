// Products of quantised weights with int8 activations (int8_rows.h).
//
// The arithmetic, one for every instruction set: for the blocks b of 32 depths in ascending order
//   acc = fma(W_b · s_b, float(D_b), acc), then, in types with a minimum, acc = fma(M_b, s_b · S_b, acc), from acc = 0,
// where s_b is the activations' scale, S_b the sum of their quants a, W_b · s_b and s_b · S_b are rounded to fp32, and D_b is an
// exact integer below 2^24:
//   Q4_0, Q5_0, Q8_0   W = d,      D = Σ (q − 8, 16, 0)·a
//   MXFP4              W = d,      D = Σ halves·a,           d half of the block's power of two
//   Q4_1, Q5_1         W = d,      D = Σ q·a,   M = m
//   Q4_K, Q5_K         W = d·sc,   D = Σ q·a,   M = −dmin·mn    (exact: 11 bits times 6)
//   Q6_K               W = d,      D = sc_0·Σ (q − 32)·a over the first 16 depths + sc_1·Σ (q − 32)·a over the others
//
// Few rows take the weights as they are packed and are bound by memory; more share a slab of bytes in the first-level cache and
// are bound by the multipliers: on AVX2 256 products of 4 bits are 8 vpmaddubsw, 7 vpaddw, one vpmaddwd and four or five fp32
// operations, 20 in all, so 5 cycles on four ports and 330 GOP/s at 3.2 GHz.
// Measured on one AVX2 core (Zen 3): Q4_1 in tiles of 4 rows 248 GOP/s in the first-level cache (0.75 of that; fp32 FMA has 104),
// 200-218 from 16 rows on; Q8_0, which widens every step, 134 of 215. One row: 29 GB/s from the third-level cache; a whole decode
// step (97 MB of weights) 19 GB/s where reading alone reaches 22-24. MXFP4 takes 1.07-1.23 of Q4_0's time at any number of rows.
#pragma once

#include "int8_blocks.h"
#include "tile.h"

namespace {

using splice::cpu::Int8Block;

#if defined(SPLICE_AVX512)
constexpr int INT8_ROWS = 12;
#elif defined(SPLICE_AVX2)
constexpr int INT8_ROWS = 4;  // 8 of 16 registers sum, and what comes after a block has room
#else
constexpr int INT8_ROWS = 2;
#endif
// How far ahead one row, which waits for memory, asks for weights: measured best between 1 and 5 KiB, +20 %.
constexpr int64_t PREFETCH_BYTES = 2560;
// Up to so many rows unpack the weights in registers, once for every INT8_ROWS of them; more share a slab, and so do a few rows of
// the types that are long to unpack.
constexpr int64_t DIRECT_ROWS = 12;
constexpr bool unpacks_fast(int dtype) { return quant_bits(dtype) % 4 == 0; }

SPLICE_INLINE uint32_t activations_of(const Int8Block& block, int group) {
  uint32_t four;
  __builtin_memcpy(&four, block.quants + 4 * group, 4);
  return four;
}

template <class Block, int ROWS>
struct BlockDots {
  static constexpr bool PAIRED = Block::FORM == SPLICE_CPU_Q6_K;
  template <bool, int BITS>
  struct Kind {
    using Type = Dot<BITS>;
  };
  template <int BITS>
  struct Kind<true, BITS> {
    using Type = PairDot;
  };
  typename Kind<PAIRED, product_bits(Block::FORM)>::Type dots[ROWS];

  template <int G>
  SPLICE_MEMBER void add(const Block& w, const Int8Block* a, int64_t a_row) {
    const W16 weights = w.template group<G>();
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const uint32_t four = activations_of(a[r * a_row], G);
      if constexpr (PAIRED)
        dots[r].template add<G>(weights, four, w.pair());
      else
        dots[r].template add<G>(weights, four);
    }
    if constexpr (G + 1 < GROUPS) add<G + 1>(w, a, a_row);
  }

  // D_b of one row.
  SPLICE_MEMBER W16 total(int r, const Block& w, const Int8Block& a) const {
    constexpr int FORM = Block::FORM;
    W16 total = dots[r].total();
    if constexpr (PAIRED) {
      uint32_t sums;
      __builtin_memcpy(&sums, a.half_sums, 4);
      total = total - shift_left<5>(multiply_pairs(w.pair(), splat_word(sums)));
    } else {
      constexpr int OFFSET = splice::cpu::quant_offset(FORM) + (quant_bits(FORM) == 8 ? static_cast<int>(BYTE_BIAS) : 0);
      if constexpr (OFFSET != 0) total = total - splat_word(static_cast<uint32_t>(OFFSET * a.sum));
    }
    return total;
  }
};

// c[r][16]: ROWS rows of activations over one panel.
template <class Block, int ROWS>
__attribute__((noinline)) void int8_tile(const Int8Block* a, int64_t a_row, const uint8_t* weights, int64_t blocks, float* c) {
  F16 acc[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) acc[r] = zero();
  for (int64_t b = 0; b < blocks; ++b, ++a) {
    Block w;
    w.open(weights, b);
    if constexpr (ROWS == 1) w.prefetch(PREFETCH_BYTES);
    BlockDots<Block, ROWS> dots;
    dots.template add<0>(w, a, a_row);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Int8Block& x = a[r * a_row];
      const F16 dot = to_float(dots.total(r, w, x));
      acc[r] = fma(mul(w.scale(), splat(x.scale)), dot, acc[r]);
      if constexpr (has_minimum(Block::FORM)) acc[r] = fma(w.minimum(), splat(x.scaled_sum), acc[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) store(c + r * LANES, acc[r]);
}

// Any number of rows over one panel, in tiles of nearly equal height.
template <class Block>
SPLICE_INLINE void int8_rows(const Int8Block* a, int64_t blocks, const uint8_t* weights, int64_t rows, float* c) {
  int64_t tiles = (rows + INT8_ROWS - 1) / INT8_ROWS;
  for (int64_t r = 0, count = 0; r < rows; r += count, --tiles) {
    count = (rows - r + tiles - 1) / tiles;
    with_rows<INT8_ROWS>(count, [&]<int ROWS>() {
      int8_tile<Block, ROWS>(a + r * blocks, blocks, weights, blocks, c + r * LANES);
    });
  }
}

// Calls body<DTYPE>() for a quantised dtype known only at run time.
template <int DTYPE = SPLICE_CPU_Q4_0, class Body>
SPLICE_INLINE void with_quant(int dtype, Body&& body) {
  if constexpr (DTYPE == SPLICE_CPU_MXFP4) {
    body.template operator()<DTYPE>();
  } else {
    if (dtype == DTYPE)
      body.template operator()<DTYPE>();
    else
      with_quant<DTYPE + 1>(dtype, static_cast<Body&&>(body));
  }
}

// c[p][row][16] of rows first_row..first_row+rows over `panels` neighbouring panels; scratch holds a slab.
SPLICE_INLINE void int8_product(const splice::cpu::LinearArgs& args, int64_t panel, int64_t panels, int64_t first_row,
                                int64_t rows, float* c, uint8_t* slab) {
  const int64_t blocks = args.k / splice::cpu::INT8_DEPTH, stride = splice::cpu::quant_panel_bytes(args.dtype, args.k);
  const Int8Block* a = args.x8 + first_row * blocks;
  const uint8_t* weights = static_cast<const uint8_t*>(args.packed) + panel * stride;
  const int64_t c_panel = rows * LANES;
  with_quant(args.dtype, [&]<int DTYPE>() {
    if (rows == 1) {
      for (int64_t p = 0; p < panels; ++p)
        int8_tile<PackedBlock<DTYPE>, 1>(a, blocks, weights + p * stride, blocks, c + p * c_panel);
      return;
    }
    if constexpr (unpacks_fast(DTYPE)) {
      if (rows <= DIRECT_ROWS) {
        for (int64_t p = 0; p < panels; ++p)
          int8_rows<PackedBlock<DTYPE>>(a, blocks, weights + p * stride, rows, c + p * c_panel);
        return;
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      fill_slab<DTYPE>(weights + p * stride, blocks, slab);
      int8_rows<SlabBlock<slab_form(DTYPE)>>(a, blocks, slab, rows, c + p * c_panel);
    }
  });
}

}  // namespace
