// See emulator.h. Fibers are ucontext's; on x86-64, where its switch would enter the kernel each time, a few instructions of our own.
#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace splice::cuda::emulator {

namespace {

constexpr size_t STACK_BYTES = 256 << 10, GUARD_BYTES = 256, SLOT_BYTES = 64;
constexpr unsigned char POISON = 0xff, GUARD = 0xa5;
enum class State { READY, AT_BARRIER, AT_COLLECTIVE, ENDED };

struct Copy {
  void* shared;
  const void* global;
  bool valid;
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

// Who may go on: one warp, all of which is at its collective, and the same one as long as it can, so that warps get as far ahead of
// each other as barriers let them; with none, the whole block, once all of it is at its barrier. Nobody: it has ended.
std::vector<int> released(int threads, int& favourite) {
  std::vector<int> warps, ready;
  int waiting = 0, ended = 0;
  for (int first = 0; first < threads; first += 32) {
    int here = 0;
    for (int i = first; i < first + 32; ++i) {
      const State state = fibers[static_cast<size_t>(i)].state;
      here += state == State::AT_COLLECTIVE;
      waiting += state == State::AT_BARRIER;
      ended += state == State::ENDED;
    }
    if (here == 0) continue;
    if (here != 32) fail("not all lanes of a warp reached a collective");
    warps.push_back(first);
  }
  if (!warps.empty()) {
    if (std::find(warps.begin(), warps.end(), favourite) == warps.end()) favourite = warps[chance() % warps.size()];
    ready.resize(32);
    std::iota(ready.begin(), ready.end(), favourite);
    return ready;
  }
  if (ended == threads) return ready;
  if (waiting != threads) fail("not all threads of a block reached a barrier");
  ready.resize(static_cast<size_t>(threads));
  std::iota(ready.begin(), ready.end(), 0);
  return ready;
}

void finish(const Copy& copy) {
  if (copy.valid)
    memcpy(copy.shared, copy.global, 16);
  else
    memset(copy.shared, 0, 16);
}

void run_block(int threads, size_t shared_bytes) {
  shared.assign(shared_bytes + GUARD_BYTES + 128, POISON);
  current.shared = shared.data() + (128 - reinterpret_cast<uintptr_t>(shared.data()) % 128) % 128;
  std::fill_n(current.shared + shared_bytes, GUARD_BYTES, GUARD);
  for (Fiber& fiber : fibers) {
    fiber.state = State::READY;
    fiber.groups.assign(1, {});
    prepare(fiber.context, fiber.stack.get(), entry);
  }
  std::vector<int> ready(static_cast<size_t>(threads));
  std::iota(ready.begin(), ready.end(), 0);
  for (int favourite = 0; !ready.empty(); ready = released(threads, favourite)) {
    std::shuffle(ready.begin(), ready.end(), chance);
    for (const int thread : ready) resume(thread);
  }
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
