// A few threads that share one piece of work at a time, by index: which thread does what is fixed by the caller.
//
// Waiting is a short spin and then a futex, on both sides: a decode step hands over work every few tens of microseconds, while a
// neighbour on the same core must never wait for someone who only looks busy (sched_yield loops cost hundreds of milliseconds).
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace splice::cpu {

class Pool {
 public:
  using Work = void (*)(void* context, int thread, int num_threads);

  explicit Pool(int num_threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }
  // Calls work(context, i, num_threads()) for every i, the caller being i = 0; returns when all are done. Not reentrant.
  void run(Work work, void* context);

 private:
  void serve(int thread);

  std::vector<std::thread> threads_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> round_{0};    // counts pieces of work; changing it starts one
  alignas(64) std::atomic<uint32_t> running_{0};  // threads still at work on this one
  std::atomic<bool> stop_{false};
};

}  // namespace splice::cpu
