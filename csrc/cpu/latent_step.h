// One thread's walk through the latent attention of a layer: down-projections, norms, the cache, queries to the latents' side,
// attention, values.
#pragma once

#include "latent_items.h"
#include "products.h"

namespace splice::cpu {

class LatentStep {
 public:
  LatentStep(const splice_cpu& cpu, Team& team, const splice_cpu_decoder& model, const splice_cpu_layer& layer, int64_t index,
             const splice_cpu_batch& batch, const splice_cpu_kv& kv, const Buffers& buffers)
      : cpu_(cpu), kernels_(*cpu.kernels), team_(team), model_(model), layer_(layer), w_(*layer.latent), index_(index),
        batch_(batch), kv_(kv), a_(buffers) {}

  // From normed rows to what the output projection reads.
  void run() {
    const bool compressed = w_.q_down.num_parts > 0;
    Products down = compressed ? products(w_.q_down, a_.normed, a_.latent.q_down) : products(w_.q, a_.normed, a_.qkv);
    append(down, products(w_.kv_down, a_.normed, a_.latent.down));
    team_products(cpu_, team_, down, batch_.rows, [&](int64_t first, int64_t last) {
      store(first, last);
      compressed ? norm_queries(first, last) : turn(first, last);
    });
    if (compressed)
      team_products(cpu_, team_, products(w_.q, a_.latent.q_normed, a_.qkv), batch_.rows,
                    [&](int64_t first, int64_t last) { turn(first, last); });
    const int64_t width = kv_.head_dim;
    each_head(w_.absorb, a_.qkv, w_.still + w_.turning, a_.rotated, width);
    team_latent_attention(cpu_, team_, {a_.latent.attended, a_.rotated, kv_, index_, batch_.block_tables, batch_.table_stride,
                                        batch_.query_starts, batch_.starts, batch_.sequences, layer_.q_heads, w_.rank, layer_.scale},
                          [] {});
    each_head(w_.expand, a_.latent.attended, w_.rank, a_.attended.f32, w_.value);
    if (!forms_of(model_, layer_.output).int8) return;
    team_.share(batch_.rows, ROW_GRAIN, [&](int64_t first, int64_t last) {
      kernels_.quantize({a_.attended.int8, a_.attended.f32, layer_.output.k, layer_.output.k}, first, last);
    });
  }

 private:
  Products products(const splice_cpu_matrix& w, const Rows& input, float* y) const {
    return products_of(model_, w, input, batch_.rows, y);
  }

  void store(int64_t first, int64_t last) const {
    kernels_.store_latents({a_.latent.down, w_.kv_norm, w_.eps, layer_.cos_sin, batch_.positions, batch_.slots, kv_, index_, w_.rank},
                           first, last);
  }

  void norm_queries(int64_t first, int64_t last) const {
    const Forms forms = forms_of(model_, w_.q);
    const int64_t size = w_.q.k;
    NormArgs args{a_.latent.q_normed.f32, nullptr, a_.latent.q_down, size, nullptr, w_.q_norm, SPLICE_CPU_F32, w_.eps, size};
    if (forms.f32) kernels_.rms_norm(args, first, last);
    args.y8 = a_.latent.q_normed.int8;
    if (forms.int8) kernels_.rms_norm(args, first, last);
  }

  void turn(int64_t first, int64_t last) const {
    kernels_.turn_queries({a_.rotated, a_.qkv, layer_.cos_sin, batch_.positions, layer_.q_heads, w_.rank, w_.still, w_.turning},
                          first, last);
  }

  // Every head's matrix times its part of every row: `x_width` and `y_width` are what heads are apart.
  void each_head(const splice_cpu_stack& stack, const float* x, int64_t x_width, float* y, int64_t y_width) {
    LinearArgs args{};
    args.x_stride = layer_.q_heads * x_width;
    args.y_stride = layer_.q_heads * y_width;
    args.dtype = stack.first.parts[0].dtype;
    args.m = batch_.rows;
    args.n = stack.first.n;
    args.k = stack.first.k;
    args.bf16 = model_.bf16;
    const int64_t each = linear_items(args), items = each * layer_.q_heads;
    float* scratch = cpu_.scratch_of(team_);
    team_.share(items, grain_of(items, team_.threads(), 4), [&](int64_t first, int64_t last) {
      while (first < last) {
        const int64_t head = first / each, begin = first % each, end = begin + last - first < each ? begin + last - first : each;
        args.x = x + head * x_width;
        args.y = y + head * y_width;
        args.packed = matrix_of(stack, head).parts[0].packed;
        kernels_.linear(args, begin, end, scratch);
        first += end - begin;
      }
    });
  }

  const splice_cpu& cpu_;
  const Kernels& kernels_;
  Team& team_;
  const splice_cpu_decoder& model_;
  const splice_cpu_layer& layer_;
  const splice_cpu_latent& w_;
  const int64_t index_;
  const splice_cpu_batch& batch_;
  const splice_cpu_kv& kv_;
  const Buffers& a_;
};

}  // namespace splice::cpu
