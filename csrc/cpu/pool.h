// A few threads that go through a piece of work together.
//
// A piece of work is a row of phases, each a number of items that whoever is free takes. A phase ends when its items are done,
// not when its threads are: a thread that the system has put aside holds up nobody unless it holds an item, and skips what is
// over when it comes back.
//
// Waiting is a spin of some microseconds and then a futex, on both sides: a decode step has a phase every ten microseconds or
// so, while a neighbour on the same core must never wait for someone who only looks busy (sched_yield loops cost hundreds of
// milliseconds).
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace splice::cpu {

// A word that threads wait to see change. Waking costs a system call only when somebody sleeps.
class Signal {
 public:
  uint32_t read() const { return word_.load(std::memory_order_acquire); }
  void set(uint32_t value);
  void wait_while(uint32_t seen);

 private:
  alignas(64) std::atomic<uint32_t> word_{0};
  alignas(64) std::atomic<uint32_t> sleepers_{0};
};

// Which phase is running and which of its items nobody has taken yet, in one word: to take an item is to know that its phase
// has not ended.
class Ticket {
 public:
  static constexpr uint32_t NONE = UINT32_MAX;

  uint32_t phase() const { return static_cast<uint32_t>(word_.load(std::memory_order_acquire) >> 32); }
  // The first of `grain` items of `phase`, or NONE when all `count` are taken or the phase is over.
  uint32_t take(uint32_t phase, uint32_t count, uint32_t grain) {
    uint64_t seen = word_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(seen >> 32) == phase && static_cast<uint32_t>(seen) < count)
      if (word_.compare_exchange_weak(seen, seen + grain, std::memory_order_acq_rel, std::memory_order_acquire))
        return static_cast<uint32_t>(seen);
    return NONE;
  }
  // Begins a phase and wakes who waited for the end of the one before.
  void begin(uint32_t phase);
  void wait_while(uint32_t phase);

 private:
  alignas(64) std::atomic<uint64_t> word_{0};
  alignas(64) std::atomic<uint32_t> sleepers_{0};
};

class Pool;

// One thread's place among those that run a piece of work.
class Team {
 public:
  Team(Pool& pool, int thread, uint32_t phase) : pool_(pool), thread_(thread), phase_(phase) {}
  int thread() const { return thread_; }
  int threads() const;

  // body(first, last) over runs of `grain` items of [0, count), taken by whoever is free: which thread does what is left to
  // chance, so no result may depend on it. Every thread of the team comes here, with the same count and grain; each leaves when
  // everything is done, after `tail()`, which the one that finishes the last item runs alone. A thread may come when all is over:
  // it runs nothing then. `count` + threads · `grain` stays below 2^32.
  template <class Body, class Tail>
  void share(int64_t count, int64_t grain, const Body& body, const Tail& tail);
  template <class Body>
  void share(int64_t count, int64_t grain, const Body& body) {
    share(count, grain, body, [] {});
  }

 private:
  Pool& pool_;
  int thread_;
  uint32_t phase_;  // the one this thread is at
};

class Pool {
 public:
  using Work = void (*)(void* context, Team& team);

  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }
  // Calls work(context, team) on the caller's thread, the first, and on the others that come in time; returns when everything
  // is done and nobody is at it any more. Not reentrant.
  void run(Work work, void* context);

 private:
  friend class Team;
  static constexpr uint32_t OPEN = 1u << 31;

  void serve(int thread);
  bool enter();
  void leave();

  std::vector<std::thread> threads_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  uint32_t first_phase_ = 0;                  // of this piece of work
  std::atomic<bool> stop_{false};
  Signal round_;                              // counts pieces of work; changing it starts one
  Signal left_;                               // counts pieces of work whose last thread left after the caller was through
  alignas(64) std::atomic<uint32_t> gate_{0}; // OPEN while threads may come, and how many are in, the caller left out
  alignas(64) std::atomic<int64_t> done_{0};  // items of the running phase that are done
  Ticket ticket_;
};

inline int Team::threads() const { return pool_.num_threads(); }

template <class Body, class Tail>
void Team::share(int64_t count, int64_t grain, const Body& body, const Tail& tail) {
  if (pool_.num_threads() == 1) {
    if (count > 0) body(int64_t{0}, count);
    tail();
    return;
  }
  const uint32_t phase = phase_++;
  const int64_t items = count > 0 ? count : 1;  // a phase of nothing still has to be ended by somebody
  uint32_t taken;
  while ((taken = pool_.ticket_.take(phase, static_cast<uint32_t>(items), static_cast<uint32_t>(grain))) != Ticket::NONE) {
    const int64_t first = taken, last = first + grain < items ? first + grain : items;
    if (count > 0) body(first, last);
    if (pool_.done_.fetch_add(last - first, std::memory_order_acq_rel) + last - first < items) continue;
    pool_.done_.store(0, std::memory_order_relaxed);
    tail();
    pool_.ticket_.begin(phase + 1);
    return;
  }
  pool_.ticket_.wait_while(phase);
}

}  // namespace splice::cpu
