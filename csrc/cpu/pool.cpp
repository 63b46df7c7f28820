#include "pool.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
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

void futex(const void* word, int operation, uint32_t value) {
  syscall(SYS_futex, word, operation, value, nullptr, nullptr, 0);
}

// A sleeper counts itself before it looks at the word a last time, the setter looks for sleepers after it has set the word:
// in the one order of these four, one of the two sees the other.
void wake_all(const void* word, const std::atomic<uint32_t>& sleepers) {
  if (sleepers.load(std::memory_order_seq_cst) != 0) futex(word, FUTEX_WAKE_PRIVATE, INT_MAX);
}

// Until changed(); `word` is what the futex sees. std::atomic::wait would yield in a loop first.
template <class Changed>
void wait_for(const void* word, uint32_t seen, std::atomic<uint32_t>& sleepers, const Changed& changed) {
  for (int i = 0; i < SPINS; ++i) {
    if (changed()) return;
    pause_briefly();
  }
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  while (!changed()) futex(word, FUTEX_WAIT_PRIVATE, seen);
  sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

// The half of a ticket's word that a futex can wait for.
const void* phase_half(const std::atomic<uint64_t>& word) { return reinterpret_cast<const char*>(&word) + 4; }
static_assert(std::endian::native == std::endian::little && sizeof(std::atomic<uint64_t>) == 8, "the phase is the second half");

}  // namespace

void Signal::set(uint32_t value) {
  word_.store(value, std::memory_order_seq_cst);
  wake_all(&word_, sleepers_);
}

void Signal::wait_while(uint32_t seen) {
  wait_for(&word_, seen, sleepers_, [&] { return word_.load(std::memory_order_seq_cst) != seen; });
}

void Ticket::begin(uint32_t phase) {
  word_.store(uint64_t{phase} << 32, std::memory_order_seq_cst);
  wake_all(phase_half(word_), sleepers_);
}

void Ticket::wait_while(uint32_t phase) {
  wait_for(phase_half(word_), phase, sleepers_,
           [&] { return static_cast<uint32_t>(word_.load(std::memory_order_seq_cst) >> 32) != phase; });
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
  first_phase_ = ticket_.phase();
  Team team(*this, 0, first_phase_);
  if (threads_.empty()) {
    work(context, team);
    return;
  }
  work_ = work;
  context_ = context;
  gate_.store(OPEN, std::memory_order_release);
  round_.set(round_.read() + 1);
  work(context, team);
  const uint32_t left = left_.read();
  if (gate_.fetch_and(~OPEN, std::memory_order_acq_rel) != OPEN) left_.wait_while(left);
}

void Pool::serve(int thread) {
  for (uint32_t seen = 0;;) {
    round_.wait_while(seen);
    seen = round_.read();
    if (stop_.load(std::memory_order_acquire)) return;
    if (!enter()) continue;
    Team team(*this, thread, first_phase_);
    work_(context_, team);
    leave();
  }
}

// False when the piece of work is over: its context may be gone.
bool Pool::enter() {
  uint32_t seen = gate_.load(std::memory_order_acquire);
  while (seen & OPEN)
    if (gate_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire)) return true;
  return false;
}

void Pool::leave() {
  if (gate_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.set(left_.read() + 1);
}

}  // namespace splice::cpu
