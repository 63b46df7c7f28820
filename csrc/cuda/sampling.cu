// One token from each row of logits: greedy, or min_p, top_k and top_p and a draw over what they leave, the token that csrc/sampling
// draws. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Reads 4 bytes a token for the maximum, 8 more for a draw, and up to 32 for each of top_k and top_p, from the second-level cache where
// a batch fits there; about 40 float64 operations a token and pass over masses. Bound by those on one block a row.
//
// All sums are of whole numbers, hence exact, and every choice is by (logit, id): no order of threads shows. Which tokens lead is
// found digit by digit of their rank, from the top, as a radix sort would, without sorting.
#include "draw_numbers.h"
#include "launch.h"

namespace splice::cuda {
namespace {

constexpr int THREADS = 512, WARPS = THREADS / WARP, SEGMENTS = 256, DIGITS = 256, DIGIT_BITS = 8;
constexpr int64_t MAX_TOKENS = int64_t{1} << 19, NOT_FINITE = -1;
constexpr float LOWEST = -3.402823466e38f;
constexpr int AHEAD = 4;  // logits a thread asks for before it looks at the first: one at a time each would cost a way to the cache

struct Shared {
  unsigned long long amounts[DIGITS], segments[SEGMENTS];
  unsigned int counts[DIGITS];
  float maxima[WARPS];
  uint32_t strange[WARPS];
  uint64_t have, point;
  int chosen, settled;
  int64_t token;
};

// A row, and which of its tokens are left.
struct Left {
  const float* logits;
  int64_t size;
  double top, sharpness;
  uint64_t least_units = 0, least_rank = 0;
  bool finite_only = false;

  // Whether it is left; its units where they had to be known, or else 0.
  SPLICE_DEVICE bool holds(int64_t id, float logit) const {
    if (finite_only && !(logit >= LOWEST)) return false;
    if (least_rank && rank_of(logit, id) < least_rank) return false;
    return !least_units || units_of(logit, top, sharpness) >= least_units;
  }
  SPLICE_DEVICE uint64_t units(int64_t id, float logit) const { return holds(id, logit) ? units_of(logit, top, sharpness) : 0; }
  // AHEAD of them, `step` apart; what is behind the row's end is nobody's.
  SPLICE_DEVICE void read(int64_t first, int64_t step, float (&to)[AHEAD]) const {
    SPLICE_UNROLL
    for (int i = 0; i < AHEAD; ++i) to[i] = first + i * step < size ? logits[first + i * step] : 0.0f;
  }
};

SPLICE_DEVICE uint64_t warp_total(uint64_t value) {
  for (int mask = WARP / 2; mask > 0; mask /= 2) value += from_lane_xor(value, mask);
  return value;
}

// The largest logit, to all threads; NaN if any logit is.
SPLICE_DEVICE float largest(const float* logits, int64_t size, Shared& shared) {
  float most = -__builtin_huge_valf();
  bool strange = false;
  SPLICE_UNROLL_BY_8
  for (int64_t id = thread_index(); id < size; id += THREADS) {
    const float logit = logits[id];
    strange |= logit != logit;
    most = logit > most ? logit : most;
  }
  for (int mask = WARP / 2; mask > 0; mask /= 2) {
    const float other = from_lane_xor(most, mask);
    most = other > most ? other : most;
  }
  const uint32_t lanes = lanes_where(strange);
  if (thread_index() % WARP == 0) {
    shared.maxima[thread_index() / WARP] = most;
    shared.strange[thread_index() / WARP] = lanes;
  }
  barrier();
  uint32_t any = 0;
  for (int warp = 0; warp < WARPS; ++warp) {
    most = shared.maxima[warp] > most ? shared.maxima[warp] : most;
    any |= shared.strange[warp];
  }
  return any ? __builtin_nanf("") : most;
}

SPLICE_DEVICE int64_t segment_tokens(int64_t size) { return (size + SEGMENTS * WARP - 1) / (SEGMENTS * WARP) * WARP; }

// Units of each segment of the row, and their sum to all threads.
SPLICE_DEVICE uint64_t count_segments(const Left& left, Shared& shared) {
  const int lane = thread_index() % WARP;
  const int64_t length = segment_tokens(left.size);
  barrier();
  for (int segment = thread_index() / WARP; segment < SEGMENTS; segment += WARPS) {
    uint64_t units = 0;
    const int64_t end = (segment + 1) * length < left.size ? (segment + 1) * length : left.size;
    for (int64_t first = segment * length + lane; first < end; first += AHEAD * WARP) {
      float logits[AHEAD];
      left.read(first, WARP, logits);
      SPLICE_UNROLL
      for (int i = 0; i < AHEAD; ++i)
        if (first + i * WARP < end) units += left.units(first + i * WARP, logits[i]);
    }
    units = warp_total(units);
    if (lane == 0) shared.segments[segment] = units;
  }
  barrier();
  uint64_t total = 0;
  for (int segment = lane; segment < SEGMENTS; segment += WARP) total += shared.segments[segment];
  return warp_total(total);
}

// Adds to a digit's amount. Tokens of a warp mostly share the upper digits: those that have the first lane's go in together.
SPLICE_DEVICE void add_amount(Shared& shared, bool counts, int digit, uint64_t amount) {
  const int first = from_lane(counts ? digit : -1, 0);
  const bool together = counts && digit == first;
  const uint64_t sum_together = warp_total(together ? amount : 0);
  const uint32_t lanes = lanes_where(together);
  if (thread_index() % WARP == 0 && lanes) {
    add_shared(&shared.amounts[first], static_cast<unsigned long long>(sum_together));
    add_shared(&shared.counts[first], static_cast<unsigned int>(lanes_in(lanes)));
  }
  if (!counts || together) return;
  add_shared(&shared.amounts[digit], static_cast<unsigned long long>(amount));
  add_shared(&shared.counts[digit], 1u);
}

// The rank from which on the tokens left reach `target` of units, or of tokens: the shortest leading part that does, all where none.
SPLICE_DEVICE uint64_t leading_rank(const Left& left, bool by_units, uint64_t target, Shared& shared) {
  uint64_t prefix = 0, have = 0;
  if (target == 0) target = 1;
  for (int shift = 64 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
    barrier();
    for (int digit = thread_index(); digit < DIGITS; digit += THREADS) shared.amounts[digit] = shared.counts[digit] = 0;
    barrier();
    for (int64_t base = 0; base < left.size; base += AHEAD * THREADS) {
      float logits[AHEAD];
      left.read(base + thread_index(), THREADS, logits);
      SPLICE_UNROLL
      for (int i = 0; i < AHEAD; ++i) {
        const int64_t id = base + i * THREADS + thread_index();
        const uint64_t rank = rank_of(logits[i], id);
        // Above the digit at hand it agrees with what was chosen. At the first digit there is nothing above.
        const bool same = shift + DIGIT_BITS == 64 || (rank ^ prefix) >> (shift + DIGIT_BITS) == 0;
        const bool counts = id < left.size && same && left.holds(id, logits[i]);
        const uint64_t amount = !counts ? 0 : by_units ? units_of(logits[i], left.top, left.sharpness) : 1;
        add_amount(shared, counts, static_cast<int>(rank >> shift & (DIGITS - 1)), amount);
      }
    }
    barrier();
    if (thread_index() == 0) {
      shared.chosen = -1;
      for (int digit = DIGITS - 1; digit >= 0; --digit) {
        const uint64_t amount = shared.amounts[digit];
        if (have + amount >= target) {
          shared.chosen = digit;
          shared.settled = shared.counts[digit] == 1 || have + amount == target;
          break;
        }
        have += amount;
      }
      shared.have = have;
    }
    barrier();
    if (shared.chosen < 0) return 0;
    have = shared.have;
    prefix |= static_cast<uint64_t>(shared.chosen) << shift;
    if (shared.settled) break;
  }
  return prefix;
}

// The token whose share of the units, laid end to end in ascending id, holds unit `point`.
SPLICE_DEVICE int64_t token_at(const Left& left, uint64_t point, Shared& shared) {
  if (thread_index() == 0) {
    int segment = 0;
    while (segment < SEGMENTS - 1 && point >= shared.segments[segment]) point -= shared.segments[segment++];
    shared.chosen = segment;
    shared.point = point;
  }
  barrier();
  if (thread_index() < WARP) {
    const int lane = thread_index();
    const int64_t length = segment_tokens(left.size), begin = shared.chosen * length;
    uint64_t before = 0;
    for (int64_t first = begin; first < begin + length; first += WARP) {
      const uint64_t own = first + lane < left.size ? left.units(first + lane, left.logits[first + lane]) : 0;
      uint64_t through = own;
      for (int step = 1; step < WARP; step *= 2) {
        const uint64_t other = from_lane(through, lane >= step ? lane - step : lane);
        if (lane >= step) through += other;
      }
      const bool here = shared.point >= before + through - own && shared.point < before + through;
      if (here) shared.token = first + lane;
      before += from_lane(through, WARP - 1);
      if (before > shared.point) break;
    }
  }
  barrier();
  return shared.token;
}

SPLICE_DEVICE int64_t lowest_largest(const Left& left, float top, Shared& shared) {
  int64_t mine = left.size;
  SPLICE_UNROLL_BY_8
  for (int64_t id = thread_index(); id < left.size; id += THREADS)
    if (left.logits[id] == top && id < mine) mine = id;
  for (int mask = WARP / 2; mask > 0; mask /= 2) {
    const int64_t other = from_lane_xor(mine, mask);
    mine = other < mine ? other : mine;
  }
  if (thread_index() % WARP == 0) shared.segments[thread_index() / WARP] = static_cast<unsigned long long>(mine);
  barrier();
  for (int warp = 0; warp < WARPS; ++warp) {
    const auto other = static_cast<int64_t>(shared.segments[warp]);
    mine = other < mine ? other : mine;
  }
  return mine;
}

SPLICE_DEVICE int64_t draw_token(const splice_cuda_draws& args, int64_t row, Shared& shared) {
  const float* logits = args.logits + row * args.stride;
  const float top = largest(logits, args.size, shared);
  if (!(top >= LOWEST && top <= -LOWEST)) return NOT_FINITE;
  const double temperature = args.temperature[row], sharpest = 1e300;
  Left left{logits, args.size, top, 1.0};
  if (temperature <= 0.0) return lowest_largest(left, top, shared);
  left.sharpness = 1.0 / temperature;
  if (left.sharpness > sharpest) left.sharpness = sharpest;
  const double min_p = args.min_p[row], top_p = args.top_p[row];
  const int64_t top_k = args.top_k[row];
  left.finite_only = min_p > 0.0 || top_p < 1.0 || (top_k > 0 && top_k < args.size);
  if (min_p > 0.0) left.least_units = static_cast<uint64_t>(ceil(product(min_p, MASS_UNITS)));
  if (top_k > 0 && top_k < args.size) left.least_rank = leading_rank(left, false, static_cast<uint64_t>(top_k), shared);
  if (top_p < 1.0) {
    const uint64_t rank = leading_rank(left, true, share_of(top_p, count_segments(left, shared)), shared);
    if (rank > left.least_rank) left.least_rank = rank;
  }
  const uint64_t total = count_segments(left, shared);
  const uint64_t random = philox(args.seed[row], args.choice[row], args.position[row], 0) >> 11;
  return token_at(left, scaled(random, total), shared);
}

SPLICE_KERNEL __launch_bounds__(THREADS) draw_tokens(splice_cuda_draws args) {
  auto& shared = *reinterpret_cast<Shared*>(shared_memory());
  const int64_t token = draw_token(args, block_x(), shared);
  if (thread_index() == 0) args.tokens[block_x()] = token;
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_draw(const splice_cuda_draws* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows < 0 || args->size <= 0 || args->size > MAX_TOKENS || args->stride < args->size)
    return fail(SPLICE_CUDA_INVALID, "draw: rows of %lld logits, expected 1 to %lld, no more than lie between rows",
                static_cast<long long>(args->size), static_cast<long long>(MAX_TOKENS));
  return launch("draw", draw_tokens, {args->rows}, THREADS, sizeof(Shared), stream, *args);
}
