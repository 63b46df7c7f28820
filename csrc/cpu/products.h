// A matrix of several types as the products that a team shares.
#pragma once

#include "context.h"
#include "decoder_buffers.h"

namespace splice::cpu {

constexpr int64_t FEW_ROWS = 4;  // so many rows are not worth a barrier of their own

// A product of each part of a matrix, side by side in the columns of y; perhaps of two matrices.
struct Products {
  LinearArgs parts[2 * SPLICE_CPU_MAX_PARTS];
  int count;
};

// One of a stack.
inline splice_cpu_matrix matrix_of(const splice_cpu_stack& stack, int64_t index) {
  splice_cpu_matrix out = stack.first;
  for (int i = 0; i < out.num_parts; ++i)
    out.parts[i].packed =
        static_cast<const uint8_t*>(out.parts[i].packed) + static_cast<size_t>(index) * stack.bytes[i];
  if (out.bias) out.bias += index * out.n;
  return out;
}

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

// Other products in the same piece of work; `to` holds those of one matrix so far.
inline void append(Products& to, const Products& more) {
  for (int i = 0; i < more.count; ++i) to.parts[to.count++] = more.parts[i];
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

// All columns of all rows, then body(first, last) over the rows of the result.
template <class Body>
void team_products(const splice_cpu& cpu, Team& team, const Products& products, int64_t rows, const Body& body) {
  const int64_t items = items_of(products);
  float* scratch = cpu.scratch_of(team);
  const auto multiply = [&](int64_t first, int64_t last) { multiply_items(*cpu.kernels, products, first, last, scratch); };
  const int64_t grain = grain_of(items, team.threads(), products.parts[0].epilogue == Epilogue::GATE ? 1 : 4);
  if (rows <= FEW_ROWS) {
    team.share(items, grain, multiply, [&] { body(int64_t{0}, rows); });
  } else {
    team.share(items, grain, multiply);
    team.share(rows, ROW_GRAIN, body);
  }
}

}  // namespace splice::cpu
