// A kernel of warpgroup.h's operations in the emulator, right or with one mistake: for test_cuda_warpgroup.py.
// `probe right` prints "equal" where scores and weighted values are those of plain loops, in whatever order threads run.
#include "warpgroup.h"

#include <stdio.h>
#include <stdlib.h>

#include <string>
#include <vector>

#include "launch.h"

namespace splice::cuda {
namespace {

constexpr int ROWS = 64, KEYS = 64, DIMS = 128, VALUES = 96, CONSUMERS = WARPGROUP, THREADS = 2 * WARPGROUP;
constexpr int CHUNKS = DIMS / 8, PANELS = DIMS / PANEL_COLUMNS, STEPS = DIMS / 16, KEY_STEPS = KEYS / 16;

enum class Mistake { NONE, NOT_PUBLISHED, NOT_OPENED, NOT_AWAITED, NOT_ARRIVED, NOT_TOGETHER, READ_TOO_EARLY, OVERWRITTEN, NOT_GIVEN };

struct Shared {
  Chunk queries[PANELS][ROWS * PANEL_CHUNKS], keys[PANELS][KEYS * PANEL_CHUNKS], values[PANELS][KEYS * PANEL_CHUNKS];
  Chunk weights[ROWS * PANEL_CHUNKS];
  SharedBarrier full;
};

SPLICE_DEVICE void copy_panels(const Chunk* from, Chunk (&to)[PANELS][ROWS * PANEL_CHUNKS]) {
  for (int i = thread_index() % WARPGROUP; i < ROWS * CHUNKS; i += WARPGROUP)
    start_copy(&to[i % CHUNKS / PANEL_CHUNKS][panel_place(i / CHUNKS, i % PANEL_CHUNKS)], from + i, true);
}

// Values weighted by rounded scores, once with weights from registers and once from shared memory.
SPLICE_KERNEL multiply_twice(const Chunk* queries, const Chunk* keys, const Chunk* values, float* own, float* shown, Mistake mistake) {
  auto& shared = *reinterpret_cast<Shared*>(shared_memory());
  if (thread_index() == 0) shared.full.begin(WARPGROUP);
  barrier();
  if (thread_index() >= CONSUMERS) {
    if (mistake != Mistake::NOT_GIVEN) give_registers<40>();
    copy_panels(queries, shared.queries);
    copy_panels(keys, shared.keys);
    copy_panels(values, shared.values);
    close_copies();
    wait_copies<0>();
    if (mistake != Mistake::NOT_PUBLISHED) publish_shared();
    if (mistake != Mistake::NOT_ARRIVED) shared.full.arrive();
    return;
  }
  if (mistake == Mistake::NOT_GIVEN)
    take_registers<256>();
  else
    take_registers<232>();
  shared.full.wait(0);
  const int lane = thread_index() % WARP, warp = thread_index() / WARP;
  float scores[KEYS / 8][4];
  if (mistake != Mistake::NOT_OPENED) open_products();
  for (int step = 0; step < STEPS; ++step)
    multiply_group<KEYS>(scores, rows_in(shared.queries[step / 4], step % 4), rows_in(shared.keys[step / 4], step % 4), step > 0);
  close_products();
  if (mistake == Mistake::NOT_AWAITED) return;
  if (mistake == Mistake::OVERWRITTEN && warp == 0) memset(&shared.keys, 0, sizeof shared.keys);
  if (mistake != Mistake::READ_TOO_EARLY) wait_products<0>();
  uint32_t weights[KEY_STEPS][4];
  for (int step = 0; step < KEY_STEPS; ++step) {
    for (int i = 0; i < 4; ++i) weights[step][i] = to_bf16_pair(scores[2 * step + i / 2][i % 2 * 2], scores[2 * step + i / 2][i % 2 * 2 + 1]);
    store_matrices(&shared.weights[panel_place(warp * 16 + lane % 16, 2 * step + lane / 16)], weights[step]);
  }
  wait_products<0>();
  publish_shared();
  barrier_of(1, CONSUMERS);
  float first[VALUES / 8][4], second[VALUES / 8][4];
  open_products();
  for (int step = 0; step < KEY_STEPS; ++step)
    multiply_group<VALUES, true>(first, weights[step], columns_in(shared.values[0], step, sizeof shared.values[0]), step > 0);
  close_products();
  if (mistake != Mistake::NOT_TOGETHER || warp > 0) {
    open_products();
    for (int step = 0; step < KEY_STEPS; ++step)
      multiply_group<VALUES, true>(second, rows_in(shared.weights, step), columns_in(shared.values[0], step, sizeof shared.values[0]), step > 0);
    close_products();
  }
  wait_products<0>();
  for (int i = 0; i < VALUES / 2; ++i) {
    const int row = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    own[row * VALUES + column] = first[i / 4][i % 4];
    shown[row * VALUES + column] = second[i / 4][i % 4];
  }
}

std::vector<uint16_t> drawn() {
  std::vector<uint16_t> elements(static_cast<size_t>(ROWS) * DIMS);
  for (uint16_t& element : elements) element = to_bf16(static_cast<float>(rand() % 1000) / 500.0f - 1.0f);
  return elements;
}

float chain(int count, const uint16_t* a, const uint16_t* b, int stride) {
  float total = 0.0f;
  for (int k = 0; k < count; ++k) total += from_bf16(a[k]) * from_bf16(b[k * stride]);
  return total;
}

}  // namespace
}  // namespace splice::cuda

using namespace splice::cuda;

int main(int, char** arguments) {
  const std::string names[] = {"right", "not published", "not opened", "not awaited", "not arrived", "not together", "read too early", "overwritten", "not given"};
  int mistake = 0;
  while (names[mistake] != arguments[1]) ++mistake;
  const std::vector<uint16_t> queries = drawn(), keys = drawn(), values = drawn();
  std::vector<float> expected;
  for (int row = 0; row < ROWS; ++row) {
    uint16_t weights[KEYS];
    for (int key = 0; key < KEYS; ++key) weights[key] = to_bf16(chain(DIMS, &queries[row * DIMS], &keys[key * DIMS], 1));
    for (int column = 0; column < VALUES; ++column) expected.push_back(chain(KEYS, weights, &values[column], DIMS));
  }
  const auto chunks = [](const std::vector<uint16_t>& elements) { return reinterpret_cast<const Chunk*>(elements.data()); };
  bool equal = true;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    emulator::seed() = seed;
    std::vector<float> own(expected.size(), NAN), shown(expected.size(), NAN);
    if (launch("probe", multiply_twice, {1}, THREADS, sizeof(Shared), nullptr, chunks(queries), chunks(keys), chunks(values), own.data(), shown.data(),
               static_cast<Mistake>(mistake)))
      return 2;
    equal = equal && own == expected && shown == expected;
  }
  puts(equal ? "equal" : "different");
}
