// The gates of an MLP, element by element in float32: SiLU (arXiv 2002.05202), GELU by its tanh formula, GPT-OSS's clamped SwiGLU.
#pragma once

#include "platform.h"
#include "splice_cuda.h"

namespace splice::cuda {

template <int activation>
SPLICE_DEVICE float gated(float x, float up) {
  if constexpr (activation == SPLICE_CUDA_SILU) {
    return product(quotient(x, sum(1.0f, natural_power(-x))), up);
  } else if constexpr (activation == SPLICE_CUDA_GELU_TANH) {
    const float cubic = fused(product(product(x, x), x), 0.044715f, x);
    const float turned = sum(1.0f, hyperbolic_tangent(product(cubic, 0.7978845608f)));  // sqrt(2 / pi)
    return product(product(product(x, 0.5f), turned), up);
  } else {
    const float gate = x > 7.0f ? 7.0f : x, within = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
    const float sigmoid = quotient(1.0f, sum(1.0f, natural_power(product(gate, -1.702f))));
    return product(product(gate, sigmoid), sum(within, 1.0f));
  }
}

// The activation as a number; the same for all threads of a block.
SPLICE_DEVICE float gated(int activation, float x, float up) {
  if (activation == SPLICE_CUDA_SILU) return gated<SPLICE_CUDA_SILU>(x, up);
  if (activation == SPLICE_CUDA_GELU_TANH) return gated<SPLICE_CUDA_GELU_TANH>(x, up);
  return gated<SPLICE_CUDA_SWIGLU_OAI>(x, up);
}

}  // namespace splice::cuda
