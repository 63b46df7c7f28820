// From a router's logits to experts and weights. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Reads 4 bytes an expert and writes 12 a choice, does one exponential an expert and, a choice, one pass over what its lane holds and a
// tree of a warp: some microseconds whatever the batch; bound by latency.
//
// A warp takes a row; lane l has experts l, l + 32, … Exponentials and their sum are in float64 (draw_numbers.h), so that a score is the
// exact one rounded but in the rarest case, the same in the emulator and on every GPU, and two logits keep their order. A sum runs over
// a lane's experts in order and then as a tree over lanes; those of the chosen run from the first choice to the last.
#include "draw_numbers.h"
#include "launch.h"

namespace splice::cuda {
namespace {

constexpr int WARPS = 4, MAX_EXPERTS = 512, MAX_CHOICES = WARP, MAX_GROUPS = WARP;
constexpr float NOTHING = 1e-20f;  // sigmoids of very negative logits may all be zero

// Larger for larger values, and largest for NaN; both zeros are alike.
SPLICE_DEVICE uint32_t ordered(float value) {
  if (value != value) return 0xffffffffu;
  const float positive_zero = value + 0.0f;
  uint32_t bits;
  memcpy(&bits, &positive_zero, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
SPLICE_DEVICE float value_of(uint32_t order) {
  const uint32_t bits = order & 0x80000000u ? order & 0x7fffffffu : ~order;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;  // of NaN's order, NaN
}

// Of values in this order, the lower id first of two alike. 0 is below all.
SPLICE_DEVICE uint64_t key_of(uint32_t order, int id) { return static_cast<uint64_t>(order) << 32 | ~static_cast<uint32_t>(id); }
SPLICE_DEVICE int id_of(uint64_t key) { return static_cast<int>(~static_cast<uint32_t>(key)); }

SPLICE_DEVICE uint64_t warp_most(uint64_t key) {
  SPLICE_UNROLL
  for (int mask = WARP / 2; mask > 0; mask /= 2) {
    const uint64_t other = from_lane_xor(key, mask);
    key = other > key ? other : key;
  }
  return key;
}
SPLICE_DEVICE float warp_most(float value) {
  SPLICE_UNROLL
  for (int mask = WARP / 2; mask > 0; mask /= 2) {
    const float other = from_lane_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}
SPLICE_DEVICE double warp_total(double value) {
  SPLICE_UNROLL
  for (int mask = WARP / 2; mask > 0; mask /= 2) value = sum(value, from_lane_xor(value, mask));
  return value;
}

SPLICE_DEVICE float sigmoid(float x) {
  const double power = exp_of(x > 0.0f ? -static_cast<double>(x) : static_cast<double>(x)), whole = sum(1.0, power);
  return static_cast<float>((x > 0.0f ? 1.0 : power) / whole);  // a quotient alone is never fused with anything
}

// What a lane knows of its experts: i·32 + lane.
template <int per_lane>
struct Experts {
  float scores[per_lane];
  uint32_t merits[per_lane];  // in order; 0: no expert

  SPLICE_DEVICE Experts(const splice_cuda_routing& args, int64_t row, int lane) {
    const float* logits = args.logits + row * args.stride;
    float highest = -__builtin_huge_valf();
    SPLICE_UNROLL
    for (int i = 0; i < per_lane; ++i) {
      const int expert = i * WARP + lane;
      scores[i] = expert < args.num_experts ? logits[expert] : -__builtin_huge_valf();
      highest = scores[i] > highest ? scores[i] : highest;
    }
    if (args.scores == SPLICE_CUDA_SOFTMAX) {
      highest = warp_most(highest);
      double powers[per_lane], total = 0.0;
      SPLICE_UNROLL
      for (int i = 0; i < per_lane; ++i) {
        const bool is_expert = i * WARP + lane < args.num_experts;
        powers[i] = is_expert ? exp_of(sum(static_cast<double>(scores[i]), -static_cast<double>(highest))) : 0.0;
        total = sum(total, powers[i]);
      }
      total = warp_total(total);
      SPLICE_UNROLL
      for (int i = 0; i < per_lane; ++i) scores[i] = static_cast<float>(powers[i] / total);
    } else if (args.scores == SPLICE_CUDA_SIGMOID) {
      SPLICE_UNROLL
      for (int i = 0; i < per_lane; ++i) scores[i] = sigmoid(scores[i]);
    }
    SPLICE_UNROLL
    for (int i = 0; i < per_lane; ++i) {
      const int expert = i * WARP + lane;
      merits[i] = 0;
      if (expert < args.num_experts) merits[i] = ordered(args.score_bias ? sum(scores[i], args.score_bias[expert]) : scores[i]);
    }
  }
};

// The best `top_groups` groups as bits. `merits` are the row's in shared memory, one an expert.
SPLICE_DEVICE uint32_t best_groups(const splice_cuda_routing& args, const uint32_t* merits, int lane) {
  const int size = static_cast<int>(args.num_experts / args.num_groups);
  uint64_t key = 0;
  if (lane < args.num_groups) {
    uint32_t best = 0, second = 0;
    for (int i = 0; i < size; ++i) {
      const uint32_t merit = merits[lane * size + i];
      second = merit > best ? best : merit > second ? merit : second;
      best = merit > best ? merit : best;
    }
    key = key_of(args.group_score_is_top2 ? ordered(sum(value_of(best), value_of(second))) : best, lane);
  }
  uint32_t chosen = 0;
  for (int i = 0; i < args.top_groups; ++i) {
    const int group = id_of(warp_most(key));
    chosen |= 1u << group;
    if (lane == group) key = 0;
  }
  return chosen;
}

template <int per_lane>
SPLICE_KERNEL __launch_bounds__(WARPS* WARP) route_rows(splice_cuda_routing args) {
  const int lane = thread_index() % WARP, warp = thread_index() / WARP, top_k = static_cast<int>(args.top_k);
  const int64_t own = block_x() * WARPS + warp, row = own < args.rows ? own : args.rows - 1;  // all warps meet at the barrier
  Experts<per_lane> experts(args, row, lane);
  if (args.top_groups != args.num_groups) {
    uint32_t* merits = reinterpret_cast<uint32_t*>(shared_memory()) + warp * args.num_experts;
    SPLICE_UNROLL
    for (int i = 0; i < per_lane; ++i)
      if (i * WARP + lane < args.num_experts) merits[i * WARP + lane] = experts.merits[i];
    barrier();
    const uint32_t chosen = best_groups(args, merits, lane);
    const int size = static_cast<int>(args.num_experts / args.num_groups);
    SPLICE_UNROLL
    for (int i = 0; i < per_lane; ++i) {
      const int expert = i * WARP + lane;
      if (expert < args.num_experts && !(chosen >> (expert / size) & 1)) experts.merits[i] = ordered(-__builtin_huge_valf());
    }
  }
  int choice = 0;
  float weight = 0.0f;  // lane i's are those of choice i
  for (int rank = 0; rank < top_k; ++rank) {
    uint64_t key = 0;
    SPLICE_UNROLL
    for (int i = 0; i < per_lane; ++i) {
      const uint64_t other = experts.merits[i] ? key_of(experts.merits[i], i * WARP + lane) : 0;
      key = other > key ? other : key;
    }
    const int best = id_of(warp_most(key));
    float score = 0.0f;
    SPLICE_UNROLL
    for (int i = 0; i < per_lane; ++i) {
      if (i * WARP + lane != best) continue;
      score = experts.scores[i];
      experts.merits[i] = 0;
    }
    score = from_lane(score, best % WARP);
    if (lane == rank) choice = best, weight = score;
  }
  if (args.scores == SPLICE_CUDA_SOFTMAX_OF_CHOSEN) {
    const double power = exp_of(sum(static_cast<double>(weight), -static_cast<double>(from_lane(weight, 0))));
    double total = 0.0;
    for (int rank = 0; rank < top_k; ++rank) total = sum(total, from_lane(power, rank));
    weight = static_cast<float>(power / total);
  }
  if (args.normalise) {
    float total = from_lane(weight, 0);
    for (int rank = 1; rank < top_k; ++rank) total = sum(total, from_lane(weight, rank));
    weight = quotient(weight, sum(total, NOTHING));
  }
  if (own >= args.rows || lane >= top_k) return;
  args.experts[row * top_k + lane] = choice;
  args.weights[row * top_k + lane] = product(weight, args.scale);
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_route(const splice_cuda_routing* args, void* stream) {
  using namespace splice::cuda;
  const splice_cuda_routing& a = *args;
  if (a.rows < 0 || a.num_experts <= 0 || a.num_experts > MAX_EXPERTS || a.stride < a.num_experts)
    return fail(SPLICE_CUDA_INVALID, "route: %lld experts in rows of %lld, expected 1 to %d", static_cast<long long>(a.num_experts),
                static_cast<long long>(a.stride), MAX_EXPERTS);
  if (a.num_groups <= 0 || a.num_groups > MAX_GROUPS || a.num_experts % a.num_groups || a.top_groups <= 0 || a.top_groups > a.num_groups ||
      (a.group_score_is_top2 && a.num_experts < 2 * a.num_groups))
    return fail(SPLICE_CUDA_INVALID, "route: %lld of %lld groups, expected 1 to %d that divide the experts", static_cast<long long>(a.top_groups),
                static_cast<long long>(a.num_groups), MAX_GROUPS);
  if (a.top_k <= 0 || a.top_k > MAX_CHOICES || a.top_k > a.num_experts / a.num_groups * a.top_groups)
    return fail(SPLICE_CUDA_INVALID, "route: top_k %lld, expected 1 to %d and no more than there are to choose from",
                static_cast<long long>(a.top_k), MAX_CHOICES);
  if (a.scores < SPLICE_CUDA_SOFTMAX || a.scores > SPLICE_CUDA_SIGMOID)
    return fail(SPLICE_CUDA_INVALID, "route: scores %d, expected 0 to %d", a.scores, SPLICE_CUDA_SIGMOID);
  const auto kernel = a.num_experts <= 4 * WARP ? route_rows<4> : route_rows<MAX_EXPERTS / WARP>;
  const size_t shared_bytes = a.top_groups == a.num_groups ? 0 : WARPS * static_cast<size_t>(a.num_experts) * sizeof(uint32_t);
  return launch("route", kernel, {(a.rows + WARPS - 1) / WARPS}, WARPS * WARP, shared_bytes, stream, a);
}
