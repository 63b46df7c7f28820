// A matrix of several types as the products that a team shares.
#pragma once

#include "decoder_buffers.h"

namespace splice::cpu {

// A product of each part of a matrix, side by side in the columns of y.
struct Products {
  LinearArgs parts[SPLICE_CPU_MAX_PARTS];
  int count;
};

inline Products products_of(const splice_cpu_decoder& model, const splice_cpu_matrix& w, const Rows& input, int64_t rows,
                            float* y, Epilogue epilogue = Epilogue::STORE) {
  Products out{};
  out.count = w.num_parts;
  int64_t column = 0;
  for (int i = 0; i < w.num_parts; ++i) {
    const splice_cpu_part& part = w.parts[i];
    LinearArgs& args = out.parts[i];
    if (model.int8 && is_quantized(part.dtype))
      args.x8 = input.int8;
    else
      args.x = input.f32;
    args.x_stride = w.k;
    args.y = y ? y + column : nullptr;
    args.y_stride = w.n;
    args.packed = part.packed;
    args.dtype = part.dtype;
    args.bias = w.bias ? w.bias + column : nullptr;
    args.m = rows;
    args.n = part.n;
    args.k = w.k;
    args.epilogue = epilogue;
    args.bf16 = model.bf16;
    column += part.n;
  }
  return out;
}

// Whether a gate and what it gates can meet while they are in the first-level cache.
inline bool gates_at_once(const splice_cpu_matrix& gate_up, Forms wanted) {
  return gate_up.num_parts == 1 && gate_up.n / 2 % GATE_COLUMNS == 0 && wanted.int8 != wanted.f32;
}

// The products of such a matrix, gated.
inline Products gate_products(Products products, const Rows& gated, Forms wanted, int activation) {
  LinearArgs& args = products.parts[0];
  args.epilogue = Epilogue::GATE;
  args.y = gated.f32;
  args.y_stride = args.n / 2;
  args.y8 = wanted.int8 ? gated.int8 : nullptr;
  args.activation = activation;
  return products;
}

inline int64_t items_of(const Products& products) {
  int64_t items = 0;
  for (int i = 0; i < products.count; ++i) items += linear_items(products.parts[i]);
  return items;
}

inline void multiply_items(const Kernels& kernels, const Products& products, int64_t first, int64_t last, float* scratch) {
  for (int i = 0; i < products.count && first < last; ++i) {
    const int64_t own = linear_items(products.parts[i]);
    if (first < own) kernels.linear(products.parts[i], first, last < own ? last : own, scratch);
    first = first > own ? first - own : 0;
    last -= own;
  }
}

}  // namespace splice::cpu
