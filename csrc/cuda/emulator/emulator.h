// The operations of platform.h on the CPU: the blocks of a grid one after another, each thread of a block a fiber.
//
// Made to find mistakes, not to be fast:
// - threads run in an order drawn anew at every barrier, and one warp gets as far ahead of the others as barriers let it, so that a
//   missing barrier shows as a result that depends on the seed;
// - shared memory begins as NaNs and ends in a guard that is checked;
// - an asynchronous copy takes place at once or when it is waited for, as chance has it;
// - a collective that not all lanes reach, a barrier that not all threads reach, or threads that wait for each other end the process
//   with a message.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

namespace splice::cuda {

namespace emulator {

struct Grid {
  int64_t x, y, z;
};

// Runs `thread` for every thread of every block. Order of threads depends on `seed()`.
void run(Grid grid, int threads, size_t shared_bytes, const std::function<void()>& thread);
uint64_t& seed();
// Bytes of shared memory a block may have: Hopper's, unless a test says otherwise.
int64_t& shared_limit();

struct Place {
  int thread, threads;
  Grid block, grid;
  unsigned char* shared;
};
const Place& place();
void wait_for_block();
void wait_for_warp();
// Until something another thread does makes it true.
void wait_until(const std::function<bool()>& condition);
// 64 bytes that a lane shows the others of its warp.
void* slot_of_lane(int lane);
void queue_copy(void* shared, const void* global, bool valid);
void close_group();
void finish_groups(int pending);

}  // namespace emulator

inline int thread_index() { return emulator::place().thread; }
inline int block_threads() { return emulator::place().threads; }
inline int64_t block_x() { return emulator::place().block.x; }
inline int64_t block_y() { return emulator::place().block.y; }
inline int64_t block_z() { return emulator::place().block.z; }
inline int64_t grid_x() { return emulator::place().grid.x; }
inline void barrier() { emulator::wait_for_block(); }
inline unsigned char* shared_memory() { return emulator::place().shared; }

template <class T>
inline T from_lane(T value, int lane) {
  memcpy(emulator::slot_of_lane(thread_index() % 32), &value, sizeof(T));
  emulator::wait_for_warp();
  T found;
  memcpy(&found, emulator::slot_of_lane(lane % 32), sizeof(T));
  emulator::wait_for_warp();
  return found;
}
template <class T>
inline T from_lane_xor(T value, int mask) {
  return from_lane(value, (thread_index() % 32) ^ mask);
}
inline uint32_t lanes_where(bool condition) {
  memcpy(emulator::slot_of_lane(thread_index() % 32), &condition, sizeof(bool));
  emulator::wait_for_warp();
  uint32_t lanes = 0;
  for (int lane = 0; lane < 32; ++lane) lanes |= static_cast<uint32_t>(*static_cast<bool*>(emulator::slot_of_lane(lane))) << lane;
  emulator::wait_for_warp();
  return lanes;
}
inline int lanes_in(uint32_t lanes) { return __builtin_popcount(lanes); }

inline void add_shared(unsigned long long* sum, unsigned long long value) { *sum += value; }
inline void add_shared(unsigned int* sum, unsigned int value) { *sum += value; }

inline double product(double a, double b) { return a * b; }
inline double sum(double a, double b) { return a + b; }
inline float product(float a, float b) { return a * b; }
inline float sum(float a, float b) { return a + b; }
inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
inline float greater(float a, float b) { return fmaxf(a, b); }
inline float quotient(float a, float b) { return a / b; }
inline float inverse_root(float x) { return 1.0f / sqrtf(x); }
inline float power_of_two(float x) { return exp2f(x); }
inline float natural_power(float x) { return expf(x); }
inline float hyperbolic_tangent(float x) { return tanhf(x); }
inline uint64_t high_product(uint64_t a, uint64_t b) { return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64); }

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  memcpy(&x, &wide, sizeof x);
  return x;
}
inline uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline uint32_t to_bf16_pair(float low, float high) { return to_bf16(low) | static_cast<uint32_t>(to_bf16(high)) << 16; }

inline uint32_t bf16_pair_difference(uint32_t a, uint32_t b) {
  const auto part = [](uint32_t pair, int shift) { return from_bf16(static_cast<uint16_t>(pair >> shift & 0xffff)); };
  return to_bf16_pair(part(a, 0) - part(b, 0), part(a, 16) - part(b, 16));
}
inline float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float from_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
  if (magnitude >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // The exponent is off by 112, of denormal numbers too: a product by a power of two is exact.
  return float_of_bits(sign | bits_of_float(float_of_bits(magnitude << 13) * 0x1p112f));
}
inline uint32_t masked_xor(uint32_t a, uint32_t mask, uint32_t bits) { return (a & mask) ^ bits; }
inline int nearest_integer(float x) { return static_cast<int>(nearbyintf(x)); }

inline void start_copy(void* shared, const void* global, bool valid) { emulator::queue_copy(shared, global, valid); }
inline void close_copies() { emulator::close_group(); }
template <int pending>
inline void wait_copies() {
  emulator::finish_groups(pending);
}

namespace emulator {

inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  const int lane = thread_index() % 32;
  memcpy(slot_of_lane(lane), row, 16);
  wait_for_warp();
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int major = lane / 4, minor = lane % 4 * 2 + i;
      const int from = transposed ? minor : major, column = transposed ? major : minor;
      pair[i] = static_cast<const uint16_t*>(slot_of_lane(matrix * 8 + from))[column];
    }
    r[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
  wait_for_warp();
}

}  // namespace emulator

inline void load_matrices(uint32_t (&r)[4], const void* row) { emulator::load_matrices(r, row, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { emulator::load_matrices(r, row, true); }

inline void multiply_fragments(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    uint16_t a[8], b[4];
  } own;
  const int lane = thread_index() % 32, group = lane / 4, quad = lane % 4;
  memcpy(own.a, a, 16);
  memcpy(own.b, &b0, 4);
  memcpy(own.b + 2, &b1, 4);
  memcpy(emulator::slot_of_lane(lane), &own, sizeof own);
  emulator::wait_for_warp();
  // a: pairs (row group, k 2q), (row group + 8, same k), (row group, k 2q + 8), (row group + 8, k 2q + 8); b: k 2q, 2q + 8 of column group.
  const auto shown = [](int who) { return static_cast<const Operands*>(emulator::slot_of_lane(who)); };
  for (int i = 0; i < 4; ++i) {
    const int row = group + i / 2 * 8, column = quad * 2 + i % 2;
    float total = c[i];
    for (int k = 0; k < 16; ++k) {
      const int left = shown(row % 8 * 4 + k % 8 / 2)->a[(k / 8 * 2 + row / 8) * 2 + k % 2];
      const int right = shown(column * 4 + k % 8 / 2)->b[k / 8 * 2 + k % 2];
      total += from_bf16(static_cast<uint16_t>(left)) * from_bf16(static_cast<uint16_t>(right));
    }
    c[i] = total;
  }
  emulator::wait_for_warp();
}

inline void multiply_fragments_int8(uint32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, uint32_t start) {
  struct Operands {
    int8_t a[16], b[8];
  } own;
  const int lane = thread_index() % 32, group = lane / 4, quad = lane % 4;
  memcpy(own.a, a, 16);
  memcpy(own.b, &b0, 4);
  memcpy(own.b + 4, &b1, 4);
  memcpy(emulator::slot_of_lane(lane), &own, sizeof own);
  emulator::wait_for_warp();
  // a: fours (row group, k 4q), (row group + 8, same k), (row group, k 4q + 16), (row group + 8, k 4q + 16); b: k 4q, 4q + 16 of
  // column group.
  const auto shown = [](int who) { return static_cast<const Operands*>(emulator::slot_of_lane(who)); };
  for (int i = 0; i < 4; ++i) {
    const int row = group + i / 2 * 8, column = quad * 2 + i % 2;
    int32_t total = 0;
    for (int k = 0; k < 32; ++k) {
      const int left = shown(row % 8 * 4 + k % 16 / 4)->a[(k / 16 * 2 + row / 8) * 4 + k % 4];
      const int right = shown(column * 4 + k % 16 / 4)->b[k / 16 * 4 + k % 4];
      total += left * right;
    }
    d[i] = start + static_cast<uint32_t>(total);
  }
  emulator::wait_for_warp();
}

}  // namespace splice::cuda
