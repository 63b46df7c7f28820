// A few threads that go through a piece of work together.
//
// Waiting is a spin of some microseconds and then a futex, on both sides: a decode step has a barrier every ten microseconds or
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

class Pool;

// One thread's place among those that run a piece of work.
class Team {
 public:
  Team(Pool& pool, int thread) : pool_(pool), thread_(thread) {}
  int thread() const { return thread_; }
  int threads() const;

  // body(first, last) over runs of `grain` items of [0, count), taken by whoever is free: which thread does what is left to
  // chance, so no result may depend on it. Every thread of the team must come here; all leave when everything is done, after
  // `tail()`, which the last one to finish runs alone.
  template <class Body, class Tail>
  void share(int64_t count, int64_t grain, const Body& body, const Tail& tail);
  template <class Body>
  void share(int64_t count, int64_t grain, const Body& body) {
    share(count, grain, body, [] {});
  }

 private:
  Pool& pool_;
  int thread_;
};

class Pool {
 public:
  using Work = void (*)(void* context, Team& team);

  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }
  // Calls work(context, team) on every thread, the caller's being the first; returns when all are done. Not reentrant.
  void run(Work work, void* context);

 private:
  friend class Team;
  void serve(int thread);

  std::vector<std::thread> threads_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> stop_{false};
  Signal round_;                                // counts pieces of work; changing it starts one
  Signal done_;                                 // the last round that all threads have finished
  Signal phase_;                                // counts barriers within a piece of work
  alignas(64) std::atomic<int> running_{0};     // threads still at work on this piece
  alignas(64) std::atomic<int> arrived_{0};     // threads that wait at the barrier
  alignas(64) std::atomic<int64_t> next_{0};    // first item nobody has taken
};

inline int Team::threads() const { return pool_.num_threads(); }

template <class Body, class Tail>
void Team::share(int64_t count, int64_t grain, const Body& body, const Tail& tail) {
  const int threads = pool_.num_threads();
  if (threads == 1) {
    if (count > 0) body(int64_t{0}, count);
    tail();
    return;
  }
  const uint32_t phase = pool_.phase_.read();
  for (;;) {
    const int64_t first = pool_.next_.fetch_add(grain, std::memory_order_relaxed);
    if (first >= count) break;
    body(first, first + grain < count ? first + grain : count);
  }
  if (pool_.arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads) {
    pool_.phase_.wait_while(phase);
    return;
  }
  pool_.arrived_.store(0, std::memory_order_relaxed);
  pool_.next_.store(0, std::memory_order_relaxed);
  tail();
  pool_.phase_.set(phase + 1);
}

}  // namespace splice::cpu
