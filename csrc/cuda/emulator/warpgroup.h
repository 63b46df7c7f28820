// The operations of warpgroup.h on the CPU. Like the rest of the emulator it looks for mistakes:
// - products take place when they are issued or as late as they may, and read shared memory then; accumulators are NaNs until waited for;
// - a product that reads what was copied or stored and not published, or that no open_products precedes, ends the process with a
//   message, and so do warps of a group that do not issue the same number of products;
// - shared memory is where the operand's descriptor says, swizzle included;
// - warpgroups that take more registers than their block was launched with, and would wait for them for ever, end the process.
#pragma once

#include "emulator.h"

namespace splice::cuda {

namespace emulator {

struct GroupOperand {
  bool in_registers;
  uint16_t own[2][16];  // rows lane / 4 and lane / 4 + 8 of the warp
  uint64_t place;
};

void publish_shared();
void open_products();
void queue_product(float* acc, int columns, const GroupOperand& a, uint64_t b, bool by_columns, bool keep);
void close_products();
void finish_products(int pending);
void stored(void* shared, int bytes);  // by this thread, not published yet
void barrier_of(int barrier, int threads, bool wait);
void own_registers(int count);  // of each thread of the warpgroup

}  // namespace emulator

inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(static_cast<const unsigned char*>(p) - emulator::place().shared); }

inline void publish_shared() { emulator::publish_shared(); }
inline void open_products() { emulator::open_products(); }
inline void close_products() { emulator::close_products(); }
template <int pending>
inline void wait_products() {
  emulator::finish_products(pending);
}
template <int fragments>
inline void hold(float (&)[fragments][4]) {}

template <int columns, bool by_columns = false>
inline void multiply_group(float (&acc)[columns / 8][4], const uint32_t (&a)[4], uint64_t b, bool keep) {
  static_assert(columns % 8 == 0 && columns <= 256);
  const int lane = thread_index() % 32;
  memcpy(emulator::slot_of_lane(lane), a, 16);
  emulator::wait_for_warp();
  emulator::GroupOperand operand{true, {}, 0};
  for (int row = 0; row < 2; ++row)
    for (int k = 0; k < 16; ++k)  // as in multiply_fragments
      operand.own[row][k] = static_cast<const uint16_t*>(emulator::slot_of_lane(lane / 4 * 4 + k % 8 / 2))[(k / 8 * 2 + row) * 2 + k % 2];
  emulator::wait_for_warp();
  emulator::queue_product(&acc[0][0], columns, operand, b, by_columns, keep);
}
template <int columns, bool by_columns = false>
inline void multiply_group(float (&acc)[columns / 8][4], uint64_t a, uint64_t b, bool keep) {
  static_assert(columns % 8 == 0 && columns <= 256);
  emulator::wait_for_warp();
  emulator::queue_product(&acc[0][0], columns, {false, {}, a}, b, by_columns, keep);
}

inline void store_matrices(void* row, const uint32_t (&r)[4]) {
  const int lane = thread_index() % 32;
  memcpy(emulator::slot_of_lane(lane), r, 16);
  emulator::wait_for_warp();
  for (int column = 0; column < 8; ++column) {  // of the row this lane has the address of
    const auto* shown = static_cast<const uint16_t*>(emulator::slot_of_lane(lane % 8 * 4 + column / 2));
    static_cast<uint16_t*>(row)[column] = shown[lane / 8 * 2 + column % 2];
  }
  emulator::stored(row, 16);
  emulator::wait_for_warp();
}

struct alignas(8) SharedBarrier {
  uint16_t count, missing;
  uint32_t round;

  void begin(int threads) {
    count = missing = static_cast<uint16_t>(threads);
    round = 0;
  }
  void arrive() {
    if (--missing) return;
    missing = count;
    ++round;
  }
  void arrive_warp() {
    emulator::wait_for_warp();
    if (thread_index() % 32 == 0) arrive();
  }
  void wait(int parity) const {
    emulator::wait_until([this, parity] { return static_cast<int>(round % 2) != parity; });
  }
};

inline void barrier_of(int barrier, int threads) { emulator::barrier_of(barrier, threads, true); }
inline void arrive_at(int barrier, int threads) { emulator::barrier_of(barrier, threads, false); }
template <int count>
inline void take_registers() {
  static_assert(count % 8 == 0 && count >= 24 && count <= 256);
  emulator::own_registers(count);
}
template <int count>
inline void give_registers() {
  static_assert(count % 8 == 0 && count >= 24 && count <= 256);
  emulator::own_registers(count);
}

}  // namespace splice::cuda
