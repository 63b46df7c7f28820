// RMSNorm, the gate of an MLP and a soft cap, row by row. All are bound by memory: they read and write each row once (from cache in practice).
#pragma once

#include "int8_rows.h"
#include "kernels.h"
#include "vec.h"

namespace {

using splice::cpu::NormArgs;
using splice::cpu::GateArgs;

SPLICE_INLINE F16 load_weight(const NormArgs& args, int64_t i) {
  if (args.weight_dtype == SPLICE_CPU_F32) return load(static_cast<const float*>(args.weight) + i);
  return load_bf16(static_cast<const uint16_t*>(args.weight) + i);
}
SPLICE_INLINE float weight_at(const NormArgs& args, int64_t i) {
  if (args.weight_dtype == SPLICE_CPU_F32) return static_cast<const float*>(args.weight)[i];
  return from_bf16(static_cast<const uint16_t*>(args.weight)[i]);
}

// Reads 8 bytes and writes 4 an element (16 and 8 with a residual). The sum of squares has 16 partial sums, element i in
// lane i mod 16, added by the tree in vec.h.
SPLICE_INLINE void norm_row(const NormArgs& args, int64_t row) {
  const float* x = args.x + row * args.x_stride;
  const int64_t whole = args.size / LANES * LANES, rest = args.size - whole;
  if (args.residual) {
    float* residual = args.residual + row * args.size;
    for (int64_t i = 0; i < whole; i += LANES) store(residual + i, add(load(residual + i), load(x + i)));
    for (int64_t i = whole; i < args.size; ++i) residual[i] = residual[i] + x[i];
    x = residual;
  }
  F16 squares = zero();
  for (int64_t i = 0; i < whole; i += LANES) squares = fma(load(x + i), load(x + i), squares);
  if (rest) squares = fma(load_first(x + whole, rest), load_first(x + whole, rest), squares);
  const float mean = sum(squares) / static_cast<float>(args.size);
  const float inverse = 1.0f / __builtin_sqrtf(mean + args.eps);
  const F16 factor = splat(inverse);
  const auto normed = [&](int64_t i) { return mul(mul(load(x + i), factor), load_weight(args, i)); };
  if (args.y8) {
    Int8Block* blocks = args.y8 + row * (args.size / splice::cpu::INT8_DEPTH);
    for (int64_t i = 0; i < args.size; i += splice::cpu::INT8_DEPTH) quantize_block(blocks++, normed(i), normed(i + LANES));
    return;
  }
  float* y = args.y + row * args.size;
  for (int64_t i = 0; i < whole; i += LANES) store(y + i, normed(i));
  for (int64_t i = whole; i < args.size; ++i) y[i] = x[i] * inverse * weight_at(args, i);
}

void rms_norm(const NormArgs& args, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) norm_row(args, row);
}

// x / (1 + e^-x) · up. Reads 8 bytes and writes 4 an element; about 25 operations each; measured 22 GB/s on one AVX2 core.
SPLICE_INLINE F16 silu_times(F16 x, F16 up) {
  const F16 one = splat(1.0f);
  return mul(div(x, add(one, exp(sub(zero(), x)))), up);
}

// GELU by its tanh formula (Hendrycks & Gimpel 2016), 0.5·x·(1 + tanh z), which is x / (1 + e^-2z).
SPLICE_INLINE F16 gelu_times(F16 x, F16 up) {
  const F16 cubic = fma(mul(mul(x, x), x), splat(0.044715f), x);
  const F16 z = mul(cubic, splat(-1.5957691216f));  // -2·sqrt(2 / pi)
  return mul(div(x, add(splat(1.0f), exp(z))), up);
}

// GPT-OSS's clamped SwiGLU; what is not a number stays so.
SPLICE_INLINE F16 swiglu_oai(F16 x, F16 up) {
  const F16 limit = splat(7.0f), one = splat(1.0f);
  x = min(limit, x);
  up = max(sub(zero(), limit), min(limit, up));
  return mul(div(x, add(one, exp(mul(splat(-1.702f), x)))), add(up, one));
}

SPLICE_INLINE F16 gated(int activation, F16 x, F16 up) {
  if (activation == SPLICE_CPU_SWIGLU_OAI) return swiglu_oai(x, up);
  return activation == SPLICE_CPU_GELU_TANH ? gelu_times(x, up) : silu_times(x, up);
}

void gated_mul(const GateArgs& args, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const float* gate = args.x + row * args.x_stride;
    const float* up = gate + args.size;
    float* y = args.y + row * args.size;
    int64_t i = 0;
    for (; i + LANES <= args.size; i += LANES) store(y + i, gated(args.activation, load(gate + i), load(up + i)));
    const int64_t rest = args.size - i;
    if (rest) store_first(y + i, gated(args.activation, load_first(gate + i, rest), load_first(up + i, rest)), rest);
  }
}

void cap(float* x, int64_t count, float softcap) {
  const F16 width = splat(softcap);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(x + i, mul(width, tanh(div(load(x + i), width))));
  if (i < count) store_first(x + i, mul(width, tanh(div(load_first(x + i, count - i), width))), count - i);
}

}  // namespace
