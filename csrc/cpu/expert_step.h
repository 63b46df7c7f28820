// One thread's walk through the experts of a layer: rows are gathered by expert, so that an expert's weights are read once a
// step, and the work items of all chosen experts are shared by the team like those of one matrix.
//
// What an expert makes of a row is a product like any other's, so it does not depend on who else chose the expert; a row's sum
// runs from its first choice to its last, wherever its rows stood.
#pragma once

#include <atomic>

#include "context.h"
#include "products.h"

namespace splice::cpu {

class ExpertStep {
 public:
  ExpertStep(const splice_cpu& cpu, Team& team, const splice_cpu_decoder& model, const splice_cpu_experts& experts,
             const Rows& input, const ExpertBuffers& buffers, int64_t rows)
      : cpu_(cpu), kernels_(*cpu.kernels), team_(team), model_(model), experts_(experts), input_(input), b_(buffers), rows_(rows),
        hidden_(experts.router.k), top_k_(experts.routing.top_k) {}

  // Whom rows go through, from their logits.
  void route(int64_t first, int64_t last) const {
    kernels_.route({b_.experts, b_.weights, b_.logits, &experts_.routing}, first, last, cpu_.scratch_of(team_));
  }

  // Where each choice stands when choices are in order of experts, rows in order within; for one thread.
  void group() const {
    const int64_t choices = rows_ * top_k_, count = experts_.routing.num_experts;
    for (int64_t e = 0; e < count; ++e) b_.starts[e] = 0;
    for (int64_t c = 0; c < choices; ++c) ++b_.starts[b_.experts[c]];
    int64_t place = 0, groups = 0;
    for (int64_t e = 0; e < count; ++e) {
      const int64_t own = b_.starts[e];
      if (own) b_.groups[groups++] = {e, place, own};
      b_.starts[e] = place;
      place += own;
    }
    for (int64_t c = 0; c < choices; ++c) b_.places[c] = b_.starts[b_.experts[c]]++;
    std::atomic_ref(*b_.num_groups).store(groups, std::memory_order_relaxed);
  }

  // Copies rows to where their experts look for them. A single row stays: all of its experts read it.
  void gather(int64_t first, int64_t last) const {
    if (rows_ == 1) return;
    const Forms forms = forms_of(model_, experts_.gate_up.first);
    for (int64_t row = first; row < last; ++row)
      for (int64_t c = row * top_k_; c < (row + 1) * top_k_; ++c) {
        const Rows from = input_.from(row, hidden_), to = b_.chosen.from(b_.places[c], hidden_);
        if (forms.f32) __builtin_memcpy(to.f32, from.f32, sizeof(float) * static_cast<size_t>(hidden_));
        if (forms.int8)
          __builtin_memcpy(to.int8, from.int8, sizeof(Int8Block) * static_cast<size_t>(hidden_ / INT8_DEPTH));
      }
  }

  // What every expert makes of its rows; then tail(), on one thread.
  template <class Tail>
  void multiply(const Tail& tail) {
    const int64_t width = experts_.down.first.k;
    const Forms forms = forms_of(model_, experts_.down.first);
    if (gates_at_once(experts_.gate_up.first, forms)) {
      share_groups([&](const ExpertGroup& g) {
        return gate_products(first_products(g, nullptr), b_.gated.from(g.first, width), forms, experts_.activation);
      }, [] {});
    } else {
      share_groups([&](const ExpertGroup& g) { return first_products(g, b_.gate_up + g.first * 2 * width); }, [] {});
      team_.share(rows_ * top_k_, ROW_GRAIN, [&](int64_t first, int64_t last) {
        kernels_.gated_mul({b_.gated.f32, b_.gate_up, 2 * width, experts_.activation, width}, first, last);
        if (forms.int8) kernels_.quantize({b_.gated.int8, b_.gated.f32, width, width}, first, last);
      });
    }
    share_groups([&](const ExpertGroup& g) {
      return products_of(model_, matrix_of(experts_.down, g.expert), b_.gated.from(g.first, width), g.count,
                         b_.parts + g.first * hidden_);
    }, tail);
  }

  // y [rows, hidden]: the weighted sum of a row's choices, and what is shared.
  void combine(float* y, int64_t first, int64_t last) const {
    kernels_.combine({y, b_.parts, b_.places, b_.weights, experts_.shared ? b_.shared : nullptr, top_k_, hidden_}, first, last);
  }

 private:
  Products first_products(const ExpertGroup& g, float* y) const {
    const Rows rows = rows_ == 1 ? input_ : b_.chosen.from(g.first, hidden_);
    return products_of(model_, matrix_of(experts_.gate_up, g.expert), rows, g.count, y);
  }

  // The items of all groups' products, one group's after another's. A thread that comes when all is over finds numbers of a later
  // layer and takes nothing.
  template <class Make, class Tail>
  void share_groups(const Make& make, const Tail& tail) {
    const int64_t groups = std::atomic_ref(*b_.num_groups).load(std::memory_order_relaxed);
    const Products any = make(ExpertGroup{0, 0, 1});
    const int64_t each = items_of(any);
    float* scratch = cpu_.scratch_of(team_);
    const auto run = [&](int64_t first, int64_t last) {
      while (first < last) {
        const int64_t begin = first % each, end = begin + last - first < each ? begin + last - first : each;
        multiply_items(kernels_, make(b_.groups[first / each]), begin, end, scratch);
        first += end - begin;
      }
    };
    team_.share(groups * each, grain_of(groups * each, team_.threads(), any.parts[0].epilogue == Epilogue::GATE ? 1 : 4), run,
                tail);
  }

  const splice_cpu& cpu_;
  const Kernels& kernels_;
  Team& team_;
  const splice_cpu_decoder& model_;
  const splice_cpu_experts& experts_;
  const Rows& input_;
  const ExpertBuffers& b_;
  const int64_t rows_, hidden_, top_k_;
};

}  // namespace splice::cpu
