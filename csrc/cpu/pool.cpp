#include "pool.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace splice::cpu {

namespace {

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is a plain 32-bit word");

constexpr int SPINS = 500;  // a few microseconds

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when the word no longer holds `seen`. std::atomic::wait would yield in a loop first.
void wait_while(std::atomic<uint32_t>& word, uint32_t seen) {
  for (int i = 0; i < SPINS; ++i) {
    if (word.load(std::memory_order_acquire) != seen) return;
    pause_briefly();
  }
  while (word.load(std::memory_order_acquire) == seen)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word, int count) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

}  // namespace

Pool::Pool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { serve(i); });
}

Pool::~Pool() {
  stop_.store(true, std::memory_order_release);
  round_.fetch_add(1, std::memory_order_release);
  wake(round_, num_threads());
  for (auto& thread : threads_) thread.join();
}

void Pool::run(Work work, void* context) {
  if (!threads_.empty()) {
    work_ = work;
    context_ = context;
    running_.store(static_cast<uint32_t>(threads_.size()), std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_release);
    wake(round_, num_threads());
  }
  work(context, 0, num_threads());
  for (uint32_t left = running_.load(std::memory_order_acquire); left != 0;
       left = running_.load(std::memory_order_acquire))
    wait_while(running_, left);
}

void Pool::serve(int thread) {
  for (uint32_t seen = 0;; ) {
    wait_while(round_, seen);
    // At most one piece of work can have been handed over: the next waits for this thread.
    seen = round_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_acquire)) return;
    work_(context_, thread, num_threads());
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) wake(running_, 1);
  }
}

}  // namespace splice::cpu
