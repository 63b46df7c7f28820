// A mixture of experts, row by row: whom a row goes through, and the sum of what they make of it. Cheap beside the experts.
//
// Every number is one chain of fp32 operations over the row's own logits or parts, in an order that follows from the model.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace {

using splice::cpu::CombineArgs;
using splice::cpu::RouteArgs;

// In place; a NaN among them makes NaN of all. The sum has 16 partial sums, element i in lane i mod 16, as in a norm.
SPLICE_INLINE void softmax(float* x, int64_t count) {
  float maximum = -__builtin_inff();
  for (int64_t i = 0; i < count; ++i) maximum = x[i] > maximum ? x[i] : maximum;
  F16 sums = zero();
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t lanes = count - i < LANES ? count - i : LANES;
    store_first(x + i, exp(sub(load_first(x + i, lanes), splat(maximum))), lanes);
    sums = add(sums, load_first(x + i, lanes));
  }
  const float total = sum(sums);
  for (int64_t i = 0; i < count; ++i) x[i] = x[i] / total;
}

SPLICE_INLINE void sigmoid(float* x, int64_t count) {
  const F16 one = splat(1.0f);
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t lanes = count - i < LANES ? count - i : LANES;
    store_first(x + i, div(one, add(one, exp(sub(zero(), load_first(x + i, lanes))))), lanes);
  }
}

// NaN counts as the greatest, so that it is chosen and seen in the result.
SPLICE_INLINE bool beats(float a, float b) { return a > b || (a != a && b == b); }

// The best of those not taken, the first of those alike.
SPLICE_INLINE int64_t best_of(const float* x, const uint8_t* taken, int64_t count) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i)
    if (!taken[i] && (best < 0 || beats(x[i], x[best]))) best = i;
  return best;
}

SPLICE_INLINE float group_worth(const splice_cpu_routing& routing, const float* merits, int64_t size) {
  float first = -__builtin_inff(), second = first;
  for (int64_t i = 0; i < size; ++i) {
    if (beats(merits[i], first)) {
      second = first;
      first = merits[i];
    } else if (beats(merits[i], second)) {
      second = merits[i];
    }
  }
  return routing.group_score == SPLICE_CPU_GROUP_TOP2_SUM ? first + second : first;
}

// Takes the experts of all groups but the best out of the choice (arXiv 2405.04434, 2.1.3).
SPLICE_INLINE void take_other_groups(const splice_cpu_routing& routing, const float* merits, float* worths, uint8_t* taken) {
  const int64_t size = routing.num_experts / routing.num_groups;
  uint8_t* chosen = taken + routing.num_experts;
  for (int64_t g = 0; g < routing.num_groups; ++g) {
    worths[g] = group_worth(routing, merits + g * size, size);
    chosen[g] = 0;
  }
  for (int64_t i = 0; i < routing.top_groups; ++i) chosen[best_of(worths, chosen, routing.num_groups)] = 1;
  for (int64_t e = 0; e < routing.num_experts; ++e) taken[e] = !chosen[e / size];
}

SPLICE_INLINE void weigh(const splice_cpu_routing& routing, float* weights) {
  if (routing.scores == SPLICE_CPU_SOFTMAX_OF_CHOSEN) softmax(weights, routing.top_k);
  if (routing.normalise) {
    float total = weights[0];
    for (int64_t i = 1; i < routing.top_k; ++i) total = total + weights[i];
    total = total + 1e-20f;  // sigmoids of very negative logits may all be next to nothing
    for (int64_t i = 0; i < routing.top_k; ++i) weights[i] = weights[i] / total;
  }
  for (int64_t i = 0; i < routing.top_k; ++i) weights[i] = weights[i] * routing.scale;
}

size_t route_scratch(const splice_cpu_routing& routing) {
  return static_cast<size_t>(3 * (routing.num_experts + routing.num_groups));
}

void route(const RouteArgs& args, int64_t first, int64_t last, float* scratch) {
  const splice_cpu_routing& routing = *args.routing;
  const int64_t count = routing.num_experts;
  float *scores = scratch, *merits = scores + count, *worths = merits + count;
  uint8_t* taken = reinterpret_cast<uint8_t*>(worths + routing.num_groups);
  for (int64_t row = first; row < last; ++row) {
    const float* logits = args.logits + row * count;
    for (int64_t e = 0; e < count; ++e) scores[e] = routing.logit_bias ? logits[e] + routing.logit_bias[e] : logits[e];
    if (routing.scores == SPLICE_CPU_SOFTMAX) softmax(scores, count);
    if (routing.scores == SPLICE_CPU_SIGMOID) sigmoid(scores, count);
    for (int64_t e = 0; e < count; ++e) {
      merits[e] = routing.score_bias ? scores[e] + routing.score_bias[e] : scores[e];
      taken[e] = 0;
    }
    if (routing.top_groups < routing.num_groups) take_other_groups(routing, merits, worths, taken);
    int64_t* experts = args.experts + row * routing.top_k;
    float* weights = args.weights + row * routing.top_k;
    for (int64_t i = 0; i < routing.top_k; ++i) {
      experts[i] = best_of(merits, taken, count);
      taken[experts[i]] = 1;
      weights[i] = scores[experts[i]];
    }
    weigh(routing, weights);
  }
}

SPLICE_INLINE F16 weighted_sum(const CombineArgs& args, int64_t row, int64_t i, int64_t lanes) {
  const int64_t* places = args.places + row * args.top_k;
  const float* weights = args.weights + row * args.top_k;
  const auto at = [lanes](const float* p) { return lanes == LANES ? load(p) : load_first(p, lanes); };
  F16 total = mul(at(args.parts + places[0] * args.size + i), splat(weights[0]));
  for (int64_t c = 1; c < args.top_k; ++c)
    total = add(total, mul(at(args.parts + places[c] * args.size + i), splat(weights[c])));
  return args.shared ? add(total, at(args.shared + row * args.size + i)) : total;
}

void combine(const CombineArgs& args, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    float* y = args.y + row * args.size;
    int64_t i = 0;
    for (; i + LANES <= args.size; i += LANES) store(y + i, weighted_sum(args, row, i, LANES));
    if (i < args.size) store_first(y + i, weighted_sum(args, row, i, args.size - i), args.size - i);
  }
}

}  // namespace
