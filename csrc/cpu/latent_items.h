// Attention over latents as items for a team: a group of heads and a tile of one sequence's queries.
#pragma once

#include "context.h"

namespace splice::cpu {

// A cursor that walks the items in order.
class LatentItems {
 public:
  explicit LatentItems(const LatentArgs& args)
      : args_(args), heads_(latent_heads(args)), tile_(latent_queries(args)) {
    skip_idle();
  }

  static int64_t count(const LatentArgs& args) {
    const int64_t tile = latent_queries(args);
    int64_t tiles = 0;
    for (int64_t s = 0; s < args.sequences; ++s)
      tiles += (args.query_starts[s + 1] - args.query_starts[s] + tile - 1) / tile;
    return tiles * ((args.q_heads + latent_heads(args) - 1) / latent_heads(args));
  }
  // Does items first..last, none of them behind the cursor.
  void run(const Kernels& kernels, int64_t first, int64_t last, float* scratch) {
    while (item_ < first) advance();
    for (; item_ < last; advance())
      kernels.latent_attention(args_, sequence_, head_, least(head_ + heads_, args_.q_heads), first_, least(first_ + tile_, queries()),
                               scratch);
  }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  int64_t queries() const { return args_.query_starts[sequence_ + 1] - args_.query_starts[sequence_]; }
  void skip_idle() {
    while (sequence_ < args_.sequences && queries() == 0) ++sequence_;
  }
  void advance() {
    ++item_;
    head_ += heads_;
    if (head_ < args_.q_heads) return;
    head_ = 0;
    first_ += tile_;
    if (first_ < queries()) return;
    first_ = 0;
    ++sequence_;
    skip_idle();
  }

  const LatentArgs& args_;
  const int64_t heads_, tile_;
  int64_t item_ = 0, sequence_ = 0, first_ = 0, head_ = 0;
};

template <class Tail>
void team_latent_attention(const splice_cpu& cpu, Team& team, const LatentArgs& args, const Tail& tail) {
  LatentItems items(args);
  float* scratch = cpu.scratch_of(team);
  team.share(LatentItems::count(args), 1,
             [&](int64_t first, int64_t last) { items.run(*cpu.kernels, first, last, scratch); }, tail);
}

}  // namespace splice::cpu
