// The context behind the C ABI: an instruction set, its threads and their scratch.
#pragma once

#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace splice::cpu {

// Memory aligned for vectors, grown on demand and kept.
class Scratch {
 public:
  bool reserve(size_t bytes) {
    if (bytes <= bytes_) return true;
    bytes_ = (bytes + 63) / 64 * 64;
    data_.reset(std::aligned_alloc(64, bytes_));
    if (!data_) bytes_ = 0;
    return data_ != nullptr;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

}  // namespace splice::cpu

struct splice_cpu {
  int isa;
  const splice::cpu::Kernels* kernels;
  std::mutex mutex;  // of everything below: one call at a time
  std::unique_ptr<splice::cpu::Pool> pool;
  std::vector<splice::cpu::Scratch> scratch;  // one a thread
  splice::cpu::Scratch quantized;             // activations of a linear called by itself

  bool reserve(size_t floats) {
    scratch.resize(static_cast<size_t>(pool->num_threads()));
    for (auto& one : scratch)
      if (!one.reserve(floats * sizeof(float))) return false;
    return true;
  }
  float* scratch_of(const splice::cpu::Team& team) const {
    return scratch[static_cast<size_t>(team.thread())].as<float>();
  }

  // body(team) on every thread.
  template <class Body>
  void run(const Body& body) {
    pool->run([](void* raw, splice::cpu::Team& team) { (*static_cast<const Body*>(raw))(team); }, const_cast<Body*>(&body));
  }
};

namespace splice::cpu {

// Items a thread takes at a time: a few turns each, so that nobody waits long for the last.
inline int64_t grain_of(int64_t items, int threads, int64_t multiple = 1) {
  const int64_t grain = items / (threads * 6) / multiple * multiple;
  return grain > multiple ? grain : multiple;
}

// Rows of cheap work a thread takes at a time.
constexpr int64_t ROW_GRAIN = 4;

// What attention is cut into: one KV head and a tile of one sequence's queries. A cursor walks the items in order.
class AttentionItems {
 public:
  explicit AttentionItems(const AttentionArgs& args) : args_(args) { skip_idle(); }

  static int64_t count(const AttentionArgs& args) {
    int64_t tiles = 0;
    for (int64_t s = 0; s < args.sequences; ++s)
      tiles += (args.query_starts[s + 1] - args.query_starts[s] + ATTENTION_QUERY_TILE - 1) / ATTENTION_QUERY_TILE;
    return tiles * args.kv.kv_heads;
  }
  // Does items first..last, none of them behind the cursor.
  void run(const Kernels& kernels, int64_t first, int64_t last, float* scratch) {
    while (item_ < first) advance();
    for (; item_ < last; advance()) {
      const int64_t end = first_ + ATTENTION_QUERY_TILE < queries() ? first_ + ATTENTION_QUERY_TILE : queries();
      kernels.attention(args_, sequence_, head_, first_, end, scratch);
    }
  }

 private:
  int64_t queries() const { return args_.query_starts[sequence_ + 1] - args_.query_starts[sequence_]; }
  void skip_idle() {
    while (sequence_ < args_.sequences && queries() == 0) ++sequence_;
  }
  void advance() {
    ++item_;
    if (++head_ < args_.kv.kv_heads) return;
    head_ = 0;
    first_ += ATTENTION_QUERY_TILE;
    if (first_ < queries()) return;
    first_ = 0;
    ++sequence_;
    skip_idle();
  }

  const AttentionArgs& args_;
  int64_t item_ = 0, sequence_ = 0, first_ = 0, head_ = 0;
};

template <class Tail>
void team_attention(const splice_cpu& cpu, Team& team, const AttentionArgs& args, const Tail& tail) {
  AttentionItems items(args);
  float* scratch = cpu.scratch_of(team);
  team.share(AttentionItems::count(args), 1,
             [&](int64_t first, int64_t last) { items.run(*cpu.kernels, first, last, scratch); }, tail);
}

}  // namespace splice::cpu
