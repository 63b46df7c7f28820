// One piece of work for the team a step, with a barrier after each product and attention; what is small is done by the thread
// that arrives last, before it lets the others go on.
#include "decoder.h"

#include "context.h"
#include "quant_layout.h"

using namespace splice::cpu;

namespace {

// Rows of activations on their way into a matrix, in the form it reads: one of the two.
struct Rows {
  float* f32;
  Int8Block* int8;
};

// The part of scratch that has not been given away; with no base, a measure of what will be needed.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<uint8_t*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    uint8_t* place = base_ ? base_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(place);
  }
  // Layers may differ in the type of a matrix, so there is room for both forms.
  Rows rows(const splice_cpu_decoder& model, int64_t rows, int64_t width) {
    return {take<float>(rows * width), model.int8 ? take<Int8Block>(rows * width / INT8_DEPTH) : nullptr};
  }
  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

struct Activations {
  float *residual, *qkv, *rotated, *gate_up;
  Rows normed, attended, gated;
  size_t bytes;

  Activations(const splice_cpu_decoder& model, int64_t rows, void* scratch) {
    Arena arena(scratch);
    const splice_cpu_layer& layer = model.layers[0];
    residual = arena.take<float>(rows * model.embedding.k);
    qkv = arena.take<float>(rows * layer.qkv.n);
    rotated = arena.take<float>(rows * layer.output.k);
    gate_up = arena.take<float>(rows * layer.gate_up.n);
    normed = arena.rows(model, rows, model.embedding.k);
    attended = arena.rows(model, rows, layer.output.k);
    gated = arena.rows(model, rows, layer.down.k);
    bytes = arena.used();
  }
};

// One thread's walk through a step.
class Step {
 public:
  Step(const splice_cpu& cpu, Team& team, const splice_cpu_decoder& model, const splice_cpu_batch& batch, splice_cpu_kv kv,
       const Activations& a)
      : cpu_(cpu), kernels_(*cpu.kernels), team_(team), model_(model), batch_(batch), kv_(kv), a_(a) {}

  void run(float* logits) {
    const int64_t width = model_.embedding.k;
    const auto embed = [&](int64_t first, int64_t last) {
      splice_cpu_packed_rows(model_.embedding.packed, model_.embedding.dtype, width, batch_.token_ids + first, last - first,
                             a_.residual + first * width);
      norm(model_.layers[0].input_norm, model_.layers[0].qkv, first, last);
    };
    team_.share(batch_.rows, ROW_GRAIN, embed);
    for (int64_t i = 0; i < model_.num_layers; ++i) layer(i);
    if (batch_.num_logits == 0) return;
    LinearArgs args = product(model_.head, a_.normed, batch_.num_logits);
    args.y = logits;
    args.y_stride = model_.head.n;
    team_linear(cpu_, team_, args, [] {});
  }

 private:
  static constexpr int64_t FEW_ROWS = 4;

  bool int8(const splice_cpu_matrix& w) const { return model_.int8 && is_quantized(w.dtype); }

  LinearArgs product(const splice_cpu_matrix& w, const Rows& input, int64_t rows) const {
    LinearArgs args{};
    if (int8(w))
      args.x8 = input.int8;
    else
      args.x = input.f32;
    args.x_stride = w.k;
    args.packed = w.packed;
    args.dtype = w.dtype;
    args.bias = w.bias;
    args.m = rows;
    args.n = w.n;
    args.k = w.k;
    return args;
  }

  // A product of all rows, then body(first, last) over the rows of its result.
  template <class Body>
  void multiply(const LinearArgs& args, const Body& body) {
    if (batch_.rows <= FEW_ROWS) {
      team_linear(cpu_, team_, args, [&] { body(int64_t{0}, batch_.rows); });
      return;
    }
    team_linear(cpu_, team_, args, [] {});
    team_.share(batch_.rows, ROW_GRAIN, body);
  }

  // Rows of the residual stream, normed for `consumer`.
  void norm(const float* weight, const splice_cpu_matrix& consumer, int64_t first, int64_t last) const {
    const int64_t width = model_.embedding.k;
    const bool quantized = int8(consumer);
    const NormArgs args{a_.normed.f32, quantized ? a_.normed.int8 : nullptr, a_.residual, width,      nullptr,
                        weight,        SPLICE_CPU_F32,                       model_.eps,  width};
    kernels_.rms_norm(args, first, last);
  }

  void quantize(const Rows& rows, int64_t width, int64_t first, int64_t last) const {
    kernels_.quantize({rows.int8, rows.f32, width, width}, first, last);
  }

  void layer(int64_t index) {
    const splice_cpu_layer& l = model_.layers[index];
    LinearArgs qkv = product(l.qkv, a_.normed, batch_.rows);
    qkv.y = a_.qkv;
    qkv.y_stride = l.qkv.n;
    multiply(qkv, [&](int64_t first, int64_t last) { rotate(index, first, last); });
    attend(index);

    add_to_residual(l.output, a_.attended, [&](int64_t first, int64_t last) { norm(l.mlp_norm, l.gate_up, first, last); });
    gate(l);
    if (index + 1 < model_.num_layers) {
      const splice_cpu_layer& next = model_.layers[index + 1];
      add_to_residual(l.down, a_.gated, [&](int64_t first, int64_t last) { norm(next.input_norm, next.qkv, first, last); });
    } else {
      add_to_residual(l.down, a_.gated, [](int64_t, int64_t) {});
      norm_logit_rows();
    }
  }

  template <class Body>
  void add_to_residual(const splice_cpu_matrix& w, const Rows& input, const Body& body) {
    LinearArgs args = product(w, input, batch_.rows);
    args.y = a_.residual;
    args.y_stride = w.n;
    args.epilogue = Epilogue::ADD;
    multiply(args, body);
  }

  void rotate(int64_t index, int64_t first, int64_t last) const {
    const int64_t width = model_.layers[index].qkv.n;
    const float* k = a_.qkv + model_.q_heads * kv_.head_dim;
    const float* v = k + kv_.kv_heads * kv_.head_dim;
    const RopeArgs args{a_.rotated,      a_.qkv,       width,           k,   width, v, width, model_.cos_sin, kv_.head_dim,
                        batch_.positions, batch_.slots, model_.q_heads, kv_, index};
    kernels_.rope_store(args, first, last);
  }

  void attend(int64_t index) {
    const splice_cpu_matrix& output = model_.layers[index].output;
    const bool quantized = int8(output);
    const bool fused = quantized && model_.q_heads / kv_.kv_heads * kv_.head_dim % INT8_DEPTH == 0;
    const AttentionArgs args{a_.attended.f32,
                             fused ? a_.attended.int8 : nullptr,
                             a_.rotated,
                             output.k,
                             kv_,
                             index,
                             batch_.block_tables,
                             batch_.table_stride,
                             batch_.query_starts,
                             batch_.starts,
                             batch_.sequences,
                             model_.q_heads,
                             model_.scale};
    team_attention(cpu_, team_, args, [] {});
    if (quantized && !fused)
      team_.share(batch_.rows, ROW_GRAIN,
                  [&](int64_t first, int64_t last) { quantize(a_.attended, output.k, first, last); });
  }

  void gate(const splice_cpu_layer& l) {
    const int64_t width = l.down.k;
    LinearArgs args = product(l.gate_up, a_.normed, batch_.rows);
    if (width % GATE_COLUMNS == 0) {
      args.epilogue = Epilogue::GATE;
      args.y = a_.gated.f32;
      args.y_stride = width;
      args.y8 = int8(l.down) ? a_.gated.int8 : nullptr;
      team_linear(cpu_, team_, args, [] {});
      return;
    }
    args.y = a_.gate_up;
    args.y_stride = l.gate_up.n;
    multiply(args, [&](int64_t first, int64_t last) {
      kernels_.silu_mul({a_.gated.f32, a_.gate_up, l.gate_up.n, width}, first, last);
    });
  }

  // Rows ascend, so the norm of one overwrites none of the residual stream that is still needed.
  void norm_logit_rows() {
    team_.share(batch_.num_logits, ROW_GRAIN, [&](int64_t first, int64_t last) {
      const int64_t width = model_.embedding.k;
      for (int64_t i = first; i < last; ++i) {
        Rows out = a_.normed;
        out.f32 += i * width;
        if (int8(model_.head)) out.int8 += i * width / INT8_DEPTH;
        const NormArgs args{out.f32, int8(model_.head) ? out.int8 : nullptr, a_.residual + batch_.logit_rows[i] * width,
                            width,   nullptr, model_.norm, SPLICE_CPU_F32, model_.eps, width};
        kernels_.rms_norm(args, 0, 1);
      }
    });
  }

  const splice_cpu& cpu_;
  const Kernels& kernels_;
  Team& team_;
  const splice_cpu_decoder& model_;
  const splice_cpu_batch& batch_;
  splice_cpu_kv kv_;
  const Activations& a_;
};

AttentionArgs widest_attention(const splice_cpu_decoder& model, splice_cpu_kv kv) {
  AttentionArgs args{};
  args.kv = kv;
  args.q_heads = model.q_heads;
  return args;
}

size_t widest_linear(const splice_cpu& cpu, const splice_cpu_decoder& model) {
  LinearArgs args{};
  for (int64_t i = 0; i < model.num_layers; ++i)
    for (const splice_cpu_matrix* w : {&model.layers[i].qkv, &model.layers[i].output, &model.layers[i].down, &model.head})
      args.k = w->k > args.k ? w->k : args.k;
  return cpu.kernels->linear_scratch(args);
}

}  // namespace

size_t splice_cpu_decoder_scratch(const splice_cpu_decoder* model, int64_t rows) {
  return Activations(*model, rows, nullptr).bytes;
}

int splice_cpu_decode(splice_cpu* cpu, const splice_cpu_decoder* model, const splice_cpu_batch* batch, splice_cpu_kv kv,
                      void* scratch, float* logits) {
  const std::lock_guard lock(cpu->mutex);
  const size_t linear = widest_linear(*cpu, *model), attention = cpu->kernels->attention_scratch(widest_attention(*model, kv));
  if (!cpu->reserve(linear > attention ? linear : attention)) return SPLICE_CPU_NO_MEMORY;
  const Activations activations(*model, batch->rows, scratch);
  cpu->run([&](Team& team) { Step(*cpu, team, *model, *batch, kv, activations).run(logits); });
  return SPLICE_CPU_OK;
}
