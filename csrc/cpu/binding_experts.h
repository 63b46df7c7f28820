// engine._native.Routing and engine._native.Experts: a mixture of experts as a decoder's layer takes it.
#pragma once

#include <nanobind/stl/string.h>

#include "binding_kernels.h"
#include "binding_weights.h"

namespace splice::binding {

inline int named(const std::string& name, std::initializer_list<const char*> names, const char* what) {
  int value = 0;
  for (const char* known : names) {
    if (name == known) return value;
    ++value;
  }
  throw std::invalid_argument(std::string(what) + " " + name + " is unknown");
}

class Routing {
 public:
  Routing(int64_t num_experts, int64_t top_k, const std::string& scores, bool normalise, float scale, int64_t num_groups,
          int64_t top_groups, const std::string& group_score, const std::optional<Vector>& logit_bias,
          const std::optional<Vector>& score_bias) {
    require(num_experts > 0 && num_groups > 0 && num_experts % num_groups == 0, "num_experts must be a multiple of num_groups");
    require(top_groups > 0 && top_groups <= num_groups, "top_groups must be positive, at most num_groups");
    require(top_k > 0 && top_k <= num_experts / num_groups * top_groups, "top_k must be positive, at most the experts to choose from");
    routing_ = {num_experts, top_k, num_groups, top_groups,
                named(scores, {"softmax", "softmax_of_chosen", "sigmoid"}, "the kind of scores"),
                named(group_score, {"max", "top2_sum"}, "the score of groups"), normalise, scale,
                weights_.vector(logit_bias, num_experts), weights_.vector(score_bias, num_experts)};
  }
  const splice_cpu_routing& get() const { return routing_; }

 private:
  Weights weights_;
  splice_cpu_routing routing_{};
};

inline void route(Kernels& kernels, Int64Matrix experts, Matrix weights, const Matrix& logits, const Routing& routing) {
  const splice_cpu_routing& own = routing.get();
  require(contiguous(logits) && size(logits, 1) == own.num_experts, "logits must be contiguous [rows, num_experts]");
  for (int64_t rows : {size(experts, 0), size(weights, 0)}) require(rows == size(logits, 0), "experts and weights must be like logits");
  require(contiguous(experts) && contiguous(weights) && size(experts, 1) == own.top_k && size(weights, 1) == own.top_k,
          "experts and weights must be contiguous [rows, top_k]");
  nb::gil_scoped_release release;
  check(splice_cpu_route(kernels.get(), experts.data(), weights.data(), logits.data(), &own, size(logits, 0)));
}

// Keeps alive what it points into.
class Experts {
 public:
  Experts(nb::object routing, nb::object router, nb::object gate_up, const std::optional<Matrix>& gate_up_bias, nb::object down,
          const std::optional<Matrix>& down_bias, const std::string& activation, nb::object shared_gate_up,
          const std::optional<Vector>& shared_gate_up_bias, nb::object shared_down,
          const std::optional<Vector>& shared_down_bias, const std::string& shared_activation) {
    weights_.keep(routing);
    experts_.routing = nb::cast<const Routing*>(routing)->get();
    experts_.router = weights_.matrix(router, std::nullopt);
    const int64_t count = experts_.routing.num_experts, hidden = experts_.router.k;
    require(experts_.router.n == count, "router has the wrong shape");
    experts_.down = weights_.stack(down, down_bias, count, hidden);
    const int64_t width = experts_.down.first.k;
    experts_.gate_up = weights_.stack(gate_up, gate_up_bias, count, 2 * width);
    require(experts_.gate_up.first.k == hidden, "gate_up has the wrong shape");
    experts_.activation = activation_named(activation);
    if (shared_gate_up.is_none()) return;
    shared_ = {weights_.matrix(shared_gate_up, shared_gate_up_bias), weights_.matrix(shared_down, shared_down_bias),
               activation_named(shared_activation)};
    require(shared_.gate_up.k == hidden && shared_.gate_up.n == 2 * shared_.down.k, "shared gate_up has the wrong shape");
    require(shared_.down.n == hidden, "shared down has the wrong shape");
    experts_.shared = &shared_;
  }
  Experts(const Experts&) = delete;
  Experts& operator=(const Experts&) = delete;

  const splice_cpu_experts& get() const { return experts_; }

 private:
  Weights weights_;
  splice_cpu_mlp shared_{};
  splice_cpu_experts experts_{};
};

}  // namespace splice::binding
