#include "pool.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

namespace splice::cpu {

namespace {

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is a plain 32-bit word");

constexpr int SPINS = 1000;  // 20 microseconds or so

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, nullptr, nullptr, 0);
}

}  // namespace

// A sleeper counts itself before it looks at the word a last time, the setter looks for sleepers after it has set the word:
// in the one order of these four, one of the two sees the other.
void Signal::set(uint32_t value) {
  word_.store(value, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) != 0) futex(word_, FUTEX_WAKE_PRIVATE, INT_MAX);
}

// std::atomic::wait would yield in a loop first.
void Signal::wait_while(uint32_t seen) {
  for (int i = 0; i < SPINS; ++i) {
    if (read() != seen) return;
    pause_briefly();
  }
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (word_.load(std::memory_order_seq_cst) == seen) futex(word_, FUTEX_WAIT_PRIVATE, seen);
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

Pool::Pool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { serve(i); });
}

Pool::~Pool() {
  stop_.store(true, std::memory_order_release);
  round_.set(round_.read() + 1);
  for (auto& thread : threads_) thread.join();
}

void Pool::run(Work work, void* context) {
  Team team(*this, 0);
  if (threads_.empty()) {
    work(context, team);
    return;
  }
  work_ = work;
  context_ = context;
  const uint32_t round = round_.read() + 1;
  running_.store(num_threads(), std::memory_order_relaxed);
  round_.set(round);
  work(context, team);
  if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1)
    done_.set(round);
  else
    done_.wait_while(round - 1);
}

void Pool::serve(int thread) {
  Team team(*this, thread);
  for (uint32_t seen = 0;; ++seen) {
    round_.wait_while(seen);
    // Exactly one piece of work has been handed over: the next waits for this thread.
    if (stop_.load(std::memory_order_acquire)) return;
    work_(context_, team);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.set(seen + 1);
  }
}

}  // namespace splice::cpu
