// See emulator.h. Fibers are ucontext's; on x86-64, where its switch would enter the kernel each time, a few instructions of our own.
#include "warpgroup.h"

#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace splice::cuda::emulator {

namespace {

constexpr size_t STACK_BYTES = 256 << 10, GUARD_BYTES = 256, SLOT_BYTES = 64, ALIGNMENT = 1024;
constexpr unsigned char POISON = 0xff, GUARD = 0xa5;
enum class State { READY, AT_BARRIER, AT_COLLECTIVE, POLLING, ENDED };

struct Copy {
  void* shared;
  const void* global;
  bool valid;
};

struct Product {
  float* acc;
  int columns;
  GroupOperand a;
  uint64_t b;
  bool by_columns, keep, done;
};

// Accumulators between the first product that adds to them and the wait for the last: what will be in them, and what is outstanding.
struct Outstanding {
  std::vector<float> value;
  int products;
};

// A barrier of some of a block's threads.
struct Meeting {
  int threads = 0, arrived = 0;
  uint64_t round = 0;
};

#if defined(__x86_64__)

using Context = void*;  // the stack pointer; what a call must preserve lies on the stack

extern "C" void splice_switch_fiber(Context* from, Context to);
asm(R"(
.text
.type splice_switch_fiber, @function
splice_switch_fiber:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size splice_switch_fiber, .-splice_switch_fiber
)");

void change(Context& from, Context& to) { splice_switch_fiber(&from, to); }

void prepare(Context& context, char* stack, void (*entry)()) {
  auto** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + STACK_BYTES) / 16 * 16);
  *--top = nullptr;  // where `entry` would return to: it never does
  *--top = reinterpret_cast<void*>(entry);
  context = top - 6;
}

#else

using Context = ucontext_t;

void change(Context& from, Context& to) { swapcontext(&from, &to); }

void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = STACK_BYTES;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

#endif

struct Fiber {
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  Context context;
  State state;
  std::vector<std::vector<Copy>> groups;  // closed, then the open one
  const std::function<bool()>* condition;
  std::vector<size_t> unpublished;  // chunks of shared memory
  std::vector<std::vector<Product>> products;  // closed groups, then the open one
  std::map<float*, Outstanding> accumulators;
  bool opened;
  int64_t issued;  // products
  int registers;
};

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "emulated kernel: %s\n", what);
  abort();
}

uint64_t order_seed = 0;
int64_t most_shared = 227 << 10, conflicts = 0;
std::mt19937_64 chance;
Place current;
std::vector<Fiber> fibers;
std::vector<unsigned char> slots, shared;
std::vector<int> writer;  // of chunks of shared memory that are not published: thread + 1
std::vector<Meeting> meetings;
const std::function<void()>* body;
Context scheduler;

void back_to_scheduler() { change(fibers[static_cast<size_t>(current.thread)].context, scheduler); }

void entry() {
  (*body)();
  fibers[static_cast<size_t>(current.thread)].state = State::ENDED;
  back_to_scheduler();
}

void resume(int thread) {
  current.thread = thread;
  fibers[static_cast<size_t>(thread)].state = State::READY;
  change(scheduler, fibers[static_cast<size_t>(thread)].context);
}

// Who may go on: of one warp, all lanes at its collective, or those whose condition holds, and the same warp as long as it can, so that
// warps get as far ahead of each other as barriers let them; with none, the whole block, once all of it is at its barrier. Nobody: it
// has ended.
std::vector<int> released(int threads, int& favourite) {
  std::vector<std::vector<int>> warps;
  int waiting = 0, ended = 0, polling = 0, halves = 0;
  for (int first = 0; first < threads; first += 32) {
    std::vector<int> ready, here;
    for (int i = first; i < first + 32; ++i) {
      const Fiber& fiber = fibers[static_cast<size_t>(i)];
      if (fiber.state == State::AT_COLLECTIVE) here.push_back(i);
      waiting += fiber.state == State::AT_BARRIER;
      ended += fiber.state == State::ENDED;
      polling += fiber.state == State::POLLING;
      if (fiber.state == State::POLLING && (*fiber.condition)()) ready.push_back(i);
    }
    if (here.size() == 32) ready = here;
    if (!ready.empty()) warps.push_back(ready);
    halves += !here.empty() && here.size() != 32;
  }
  if (!warps.empty()) {
    const auto again = std::find_if(warps.begin(), warps.end(), [&](const auto& warp) { return warp[0] / 32 == favourite; });
    const auto chosen = again != warps.end() ? again : warps.begin() + static_cast<int64_t>(chance() % warps.size());
    favourite = (*chosen)[0] / 32;
    return *chosen;
  }
  if (ended == threads) return {};
  if (polling) fail("threads wait for what none of them will do");
  if (halves) fail("not all lanes of a warp reached a collective");
  if (waiting != threads) fail("not all threads of a block reached a barrier");
  std::vector<int> all(static_cast<size_t>(threads));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

void finish(const Copy& copy) {
  if (copy.valid)
    memcpy(copy.shared, copy.global, 16);
  else
    memset(copy.shared, 0, 16);
  stored(copy.shared, 16);
}

// Of the element at `offset` bytes behind an operand's start, in bytes of shared memory.
size_t swizzled(uint64_t operand, int64_t offset) {
  if (operand >> 62 != 1 || operand >> 49 & 7) fail("an operand of products that is not swizzled by 128 bytes");
  const size_t at = (operand & 0x3fff) * 16 + static_cast<size_t>(offset);
  return at ^ (at >> 7 & 7) << 4;
}
int64_t leading_bytes(uint64_t operand) { return static_cast<int64_t>(operand >> 16 & 0x3fff) * 16; }
int64_t stride_bytes(uint64_t operand) { return static_cast<int64_t>(operand >> 32 & 0x3fff) * 16; }

float element(size_t at) {
  if (writer[at / 16]) fail("a product reads what was not published");
  uint16_t bits;
  memcpy(&bits, current.shared + at, 2);
  return from_bf16(bits);
}

// Of the operand whose rows are rows of a or columns of b.
float element_of_row(uint64_t operand, int row, int k) { return element(swizzled(operand, row / 8 * stride_bytes(operand) + row % 8 * 128 + k * 2)); }
float element_of_column(uint64_t operand, int column, int k) {
  return element(swizzled(operand, column / 64 * leading_bytes(operand) + column % 64 * 2 + k / 8 * stride_bytes(operand) + k % 8 * 128));
}

void multiply(const Product& product, std::vector<float>& acc) {
  const int lane = current.thread % 32, warp = current.thread % 128 / 32;
  float a[2][16];
  for (int row = 0; row < 2; ++row)
    for (int k = 0; k < 16; ++k)
      a[row][k] = product.a.in_registers ? from_bf16(product.a.own[row][k]) : element_of_row(product.a.place, warp * 16 + lane / 4 + row * 8, k);
  for (int fragment = 0; fragment < product.columns / 8; ++fragment)
    for (int i = 0; i < 2; ++i) {
      const int column = fragment * 8 + lane % 4 * 2 + i;
      float* totals = &acc[static_cast<size_t>(fragment * 4 + i)];  // of rows lane / 4, and two behind of the other
      if (!product.keep) totals[0] = totals[2] = 0.0f;
      for (int k = 0; k < 16; ++k) {  // in the order of multiply_fragments
        const float b = product.by_columns ? element_of_column(product.b, column, k) : element_of_row(product.b, column, k);
        totals[0] += a[0][k] * b;
        totals[2] += a[1][k] * b;
      }
    }
}

void multiply_group_of(Fiber& fiber, std::vector<Product>& group) {
  for (Product& product : group) {
    if (!product.done) multiply(product, fiber.accumulators.at(product.acc).value);
    product.done = true;
  }
}

// Of a kernel whose launch bounds say one block a multiprocessor.
int registers_at_launch(int threads) { return std::min((64 << 10) / threads / 8 * 8, 255); }

void run_block(int threads, size_t shared_bytes) {
  shared.assign(shared_bytes + GUARD_BYTES + ALIGNMENT, POISON);
  current.shared = shared.data() + (ALIGNMENT - reinterpret_cast<uintptr_t>(shared.data()) % ALIGNMENT) % ALIGNMENT;
  writer.assign(shared_bytes / 16 + 1, 0);
  meetings.assign(16, {});
  std::fill_n(current.shared + shared_bytes, GUARD_BYTES, GUARD);
  for (Fiber& fiber : fibers) {
    fiber.state = State::READY;
    fiber.groups.assign(1, {});
    fiber.unpublished.clear();
    fiber.products.assign(1, {});
    fiber.accumulators.clear();
    fiber.opened = false;
    fiber.issued = 0;
    fiber.registers = registers_at_launch(threads);
    prepare(fiber.context, fiber.stack.get(), entry);
  }
  std::vector<int> ready(static_cast<size_t>(threads));
  std::iota(ready.begin(), ready.end(), 0);
  for (int favourite = 0; !ready.empty(); ready = released(threads, favourite)) {
    std::shuffle(ready.begin(), ready.end(), chance);
    for (const int thread : ready) resume(thread);
  }
  int registers = 0;
  for (int thread = 0; thread < threads; ++thread) {
    const Fiber& fiber = fibers[static_cast<size_t>(thread)];
    registers += fiber.registers;
    if (!fiber.accumulators.empty()) fail("a product that nobody waited for");
    if (fiber.issued && threads % 128) fail("products of a block whose threads are no whole warpgroups");
    if (fiber.issued != fibers[static_cast<size_t>(thread / 128 * 128)].issued) fail("warps of a group that do not take part in the same products");
  }
  if (registers > registers_at_launch(threads) * threads) fail("warpgroups take more registers than their block was launched with");
  for (size_t i = 0; i < GUARD_BYTES; ++i)
    if (current.shared[shared_bytes + i] != GUARD) fail("a write beyond the end of shared memory");
}

void wait_in(State state) {
  fibers[static_cast<size_t>(current.thread)].state = state;
  back_to_scheduler();
}

}  // namespace

uint64_t& seed() { return order_seed; }
int64_t& shared_limit() { return most_shared; }
int64_t& bank_conflicts() { return conflicts; }
const Place& place() { return current; }
void wait_for_block() { wait_in(State::AT_BARRIER); }
void wait_for_warp() { wait_in(State::AT_COLLECTIVE); }
void wait_until(const std::function<bool()>& condition) {
  do {
    fibers[static_cast<size_t>(current.thread)].condition = &condition;
    wait_in(State::POLLING);
  } while (!condition());
}
void* slot_of_lane(int lane) { return slots.data() + static_cast<size_t>(current.thread / 32 * 32 + lane) * SLOT_BYTES; }

void queue_copy(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || (valid && reinterpret_cast<uintptr_t>(from) % 16)) fail("a copy of 16 bytes that is not aligned");
  const Copy copy{to, from, valid};
  if (chance() % 2) return finish(copy);
  fibers[static_cast<size_t>(current.thread)].groups.back().push_back(copy);
}
void close_group() { fibers[static_cast<size_t>(current.thread)].groups.emplace_back(); }
void finish_groups(int pending) {
  auto& groups = fibers[static_cast<size_t>(current.thread)].groups;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) finish(copy);
    groups.erase(groups.begin());
  }
}

void stored(void* to, int bytes) {
  const auto first = static_cast<size_t>(static_cast<unsigned char*>(to) - current.shared) / 16;
  for (size_t chunk = first; chunk < first + static_cast<size_t>(bytes + 15) / 16; ++chunk) {
    writer[chunk] = current.thread + 1;
    fibers[static_cast<size_t>(current.thread)].unpublished.push_back(chunk);
  }
}
void publish_shared() {
  Fiber& fiber = fibers[static_cast<size_t>(current.thread)];
  for (const size_t chunk : fiber.unpublished)
    if (writer[chunk] == current.thread + 1) writer[chunk] = 0;
  fiber.unpublished.clear();
}

void open_products() { fibers[static_cast<size_t>(current.thread)].opened = true; }
void queue_product(float* acc, int columns, const GroupOperand& a, uint64_t b, bool by_columns, bool keep) {
  Fiber& fiber = fibers[static_cast<size_t>(current.thread)];
  if (!fiber.opened) fail("a product that no open_products precedes");
  auto [at, first] = fiber.accumulators.try_emplace(acc, Outstanding{});
  if (first) {
    at->second.value.assign(acc, acc + columns / 2);
    std::fill_n(acc, columns / 2, NAN);
  }
  ++at->second.products;
  ++fiber.issued;
  fiber.products.back().push_back({acc, columns, a, b, by_columns, keep, false});
  if (chance() % 2 == 0) return;
  for (auto& group : fiber.products) multiply_group_of(fiber, group);
}
void close_products() {
  Fiber& fiber = fibers[static_cast<size_t>(current.thread)];
  fiber.products.emplace_back();
  fiber.opened = false;
}
void finish_products(int pending) {
  Fiber& fiber = fibers[static_cast<size_t>(current.thread)];
  while (static_cast<int>(fiber.products.size()) - 1 > pending) {
    multiply_group_of(fiber, fiber.products.front());
    for (const Product& product : fiber.products.front()) {
      const auto at = fiber.accumulators.find(product.acc);
      if (--at->second.products) continue;
      std::copy(at->second.value.begin(), at->second.value.end(), product.acc);
      fiber.accumulators.erase(at);
    }
    fiber.products.erase(fiber.products.begin());
  }
}

void own_registers(int count) { fibers[static_cast<size_t>(current.thread)].registers = count; }

void barrier_of(int barrier, int threads, bool wait) {
  Meeting& meeting = meetings.at(static_cast<size_t>(barrier));
  if (barrier <= 0 || threads % 32) fail("a barrier of some threads is one of 1 to 15, of whole warps");
  if (meeting.arrived && meeting.threads != threads) fail("a barrier that threads expect different numbers at");
  const uint64_t round = meeting.round;
  meeting.threads = threads;
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    ++meeting.round;
  }
  if (wait) wait_until([&meeting, round] { return meeting.round != round; });
}

void run(Grid grid, int threads, size_t shared_bytes, const std::function<void()>& thread) {
  if (threads % 32 || threads <= 0 || threads > 1024) fail("a block needs a multiple of 32 threads, 1024 at most");
  if (fibers.size() != static_cast<size_t>(threads)) fibers = std::vector<Fiber>(static_cast<size_t>(threads));
  slots.resize(static_cast<size_t>(threads) * SLOT_BYTES);
  body = &thread;
  current.threads = threads;
  current.grid = grid;
  chance.seed(order_seed);
  for (int64_t z = 0; z < grid.z; ++z)
    for (int64_t y = 0; y < grid.y; ++y)
      for (int64_t x = 0; x < grid.x; ++x) {
        current.block = {x, y, z};
        run_block(threads, shared_bytes);
      }
}

}  // namespace splice::cuda::emulator
