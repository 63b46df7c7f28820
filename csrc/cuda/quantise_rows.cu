// Activations as int8, every row in blocks of 32 with a scale each, bit for bit as csrc/cpu/int8_rows.h has them. Compiled for sm_80
// and sm_90; not yet run on a GPU.
//
// Of a block, m the largest magnitude: scale = m / 127, quants x · (127 / m) to the nearest integer, ties to even, both quotients
// rounded to fp32 first; S = scale · sum of the quants, rounded once. With m under 2^-100 all are zeros. With infinity or NaN in the
// block quants are 0, scale and S NaN.
// Reads 2 or 4 bytes an element and writes 1.25; about 4 operations each: bound by memory. A lane takes 4 elements, eight lanes a
// block; maximum and sum are exact in any order.
#include "launch.h"
#include "rows.h"

namespace splice::cuda {
namespace {

constexpr int THREADS = 256, LANE_ELEMENTS = 4, BLOCK_LANES = 8, BLOCK = LANE_ELEMENTS * BLOCK_LANES;
constexpr uint32_t MAGNITUDE = 0x7fffffffu, INFINITE = 0x7f800000u, SMALLEST = 0x0d800000u, NOT_A_NUMBER = 0x7fc00000u;

struct alignas(8) HalfChunk {
  uint32_t word[2];
};

SPLICE_DEVICE void read_four(const void* x, int64_t first, bool is_float32, float (&values)[LANE_ELEMENTS]) {
  if (is_float32) {
    const Chunk chunk = *reinterpret_cast<const Chunk*>(static_cast<const float*>(x) + first);
    SPLICE_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = float_of_bits(chunk.word[i]);
  } else {
    const HalfChunk chunk = *reinterpret_cast<const HalfChunk*>(static_cast<const uint16_t*>(x) + first);
    SPLICE_UNROLL
    for (int i = 0; i < 2; ++i) {
      values[2 * i] = low_of(chunk.word[i]);
      values[2 * i + 1] = high_of(chunk.word[i]);
    }
  }
}

SPLICE_KERNEL __launch_bounds__(THREADS) quantise(splice_cuda_quantise args) {
  const int64_t fours = args.k / LANE_ELEMENTS, at = block_x() * THREADS + thread_index();
  const bool valid = at < args.rows * fours;  // of whole blocks; lanes beyond take part in what the warp does together
  const int64_t row = valid ? at / fours : 0, first = valid ? at % fours * LANE_ELEMENTS : 0;
  float values[LANE_ELEMENTS] = {};
  if (valid) read_four(args.x, row * args.x_stride + first, args.x_is_float32 != 0, values);

  uint32_t largest = 0;
  SPLICE_UNROLL
  for (int i = 0; i < LANE_ELEMENTS; ++i) {
    const uint32_t magnitude = bits_of_float(values[i]) & MAGNITUDE;
    largest = magnitude > largest ? magnitude : largest;
  }
  SPLICE_UNROLL
  for (int mask = BLOCK_LANES / 2; mask > 0; mask /= 2) {
    const uint32_t other = from_lane_xor(largest, mask);
    largest = other > largest ? other : largest;
  }
  const bool counts = largest >= SMALLEST && largest < INFINITE;
  const float inverse = counts ? quotient(127.0f, float_of_bits(largest)) : 0.0f;
  const float scale = counts ? quotient(float_of_bits(largest), 127.0f) : float_of_bits(largest < SMALLEST ? 0u : NOT_A_NUMBER);

  uint32_t word = 0;
  int total = 0;
  SPLICE_UNROLL
  for (int i = 0; i < LANE_ELEMENTS; ++i) {
    const int quant = counts ? nearest_integer(product(values[i], inverse)) : 0;
    word |= (static_cast<uint32_t>(quant) & 255u) << (8 * i);
    total += quant;
  }
  SPLICE_UNROLL
  for (int mask = BLOCK_LANES / 2; mask > 0; mask /= 2) total += from_lane_xor(total, mask);
  if (!valid) return;
  *reinterpret_cast<uint32_t*>(args.quants + row * args.k + first) = word;
  if (thread_index() % BLOCK_LANES != 0) return;
  const int64_t stride = (args.k / BLOCK + 3) / 4 * 4;
  float* to = args.scales + row * stride + first / BLOCK;
  to[0] = scale;
  to[args.rows * stride] = product(scale, static_cast<float>(total));
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_quantise_rows(const splice_cuda_quantise* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows < 0 || args->k <= 0 || args->k % BLOCK || args->x_stride % LANE_ELEMENTS)
    return fail(SPLICE_CUDA_INVALID, "quantise_rows: k %lld and x_stride %lld, expected multiples of 32 and of 4",
                static_cast<long long>(args->k), static_cast<long long>(args->x_stride));
  if (!aligned(args->x) || !aligned(args->quants) || !aligned(args->scales))
    return fail(SPLICE_CUDA_INVALID, "quantise_rows: x, quants and scales must be aligned to 16 bytes");
  const int64_t threads = args->rows * (args->k / LANE_ELEMENTS);
  return launch("quantise_rows", quantise, {(threads + THREADS - 1) / THREADS}, THREADS, 0, stream, *args);
}
