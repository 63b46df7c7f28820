// engine._native.Latent: the latent attention of a decoder's layer.
#pragma once

#include "binding_weights.h"

namespace splice::binding {

// Keeps alive what it points into.
class Latent {
 public:
  Latent(nb::object q_down, const std::optional<Vector>& q_down_bias, const std::optional<Vector>& q_norm, nb::object q,
         nb::object kv_down, const std::optional<Vector>& kv_down_bias, const Vector& kv_norm, nb::object absorb, nb::object expand,
         int64_t num_heads, int64_t still, int64_t turning, int64_t rank, int64_t value, float eps) {
    require(num_heads > 0 && still > 0 && turning > 0 && turning % 2 == 0 && rank > 0 && value > 0,
            "sizes of latent attention must be positive, and those that turn even");
    latent_.q = weights_.matrix(q, std::nullopt);
    latent_.kv_down = weights_.matrix(kv_down, kv_down_bias);
    if (!q_down.is_none()) {
      latent_.q_down = weights_.matrix(q_down, q_down_bias);
      require(latent_.q_down.n == latent_.q.k && latent_.q_down.k == latent_.kv_down.k, "q_down has the wrong shape");
      require(q_norm.has_value(), "compressed queries have a norm");
    } else {
      require(latent_.q.k == latent_.kv_down.k, "q has the wrong shape");
    }
    latent_.q_norm = weights_.vector(q_norm, latent_.q.k);
    latent_.kv_norm = weights_.vector(kv_norm, rank);
    require(latent_.kv_down.n == rank + turning, "kv_down has the wrong shape");
    latent_.absorb = weights_.stack(absorb, std::nullopt, num_heads, rank);
    latent_.expand = weights_.stack(expand, std::nullopt, num_heads, value);
    require(latent_.absorb.first.k == still && latent_.expand.first.k == rank, "absorb or expand has the wrong shape");
    for (const splice_cpu_stack* stack : {&latent_.absorb, &latent_.expand})
      require(stack->first.num_parts == 1 && !is_quantized(stack->first.parts[0].dtype), "absorb and expand are float weights");
    latent_.still = still;
    latent_.turning = turning;
    latent_.rank = rank;
    latent_.value = value;
    latent_.eps = eps;
  }

  const splice_cpu_latent& get() const { return latent_; }

 private:
  Weights weights_;
  splice_cpu_latent latent_{};
};

}  // namespace splice::binding
