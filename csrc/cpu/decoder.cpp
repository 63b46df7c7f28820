#include "decoder.h"

#include <cstring>

namespace {

// A step's activations, cut from one allocation; `rows` of each.
struct Activations {
  float *residual, *normed, *qkv, *rotated, *attended, *gate_up, *gated;
};

int64_t hidden(const splice_cpu_decoder& model) { return model.embedding.k; }

// Widths of the buffers in the order of Activations.
struct Widths {
  int64_t hidden, qkv, heads, gate_up;
  explicit Widths(const splice_cpu_decoder& model)
      : hidden(model.embedding.k), qkv(model.layers[0].qkv.n), heads(model.layers[0].output.k),
        gate_up(model.layers[0].gate_up.n) {}
  int64_t total() const { return 2 * hidden + qkv + 2 * heads + gate_up + gate_up / 2; }
};

Activations cut(const splice_cpu_decoder& model, int64_t rows, float* scratch) {
  const Widths w(model);
  const auto take = [&](int64_t width) {
    float* buffer = scratch;
    scratch += rows * width;
    return buffer;
  };
  Activations a{};
  a.residual = take(w.hidden);
  a.normed = take(w.hidden);
  a.qkv = take(w.qkv);
  a.rotated = take(w.heads);
  a.attended = take(w.heads);
  a.gate_up = take(w.gate_up);
  a.gated = take(w.gate_up / 2);
  return a;
}

// The first failure ends a step: every later operation is skipped and the code returned.
class Step {
 public:
  Step(splice_cpu* cpu, const splice_cpu_decoder& model, const splice_cpu_batch& batch, splice_cpu_kv kv, Activations a)
      : cpu_(cpu), model_(model), batch_(batch), kv_(kv), a_(a) {}

  int run(float* logits) {
    splice_cpu_packed_rows(model_.embedding.packed, model_.embedding.dtype, hidden(model_), batch_.token_ids, batch_.rows,
                           a_.residual);
    const float* update = nullptr;
    for (int64_t i = 0; i < model_.num_layers; ++i) {
      layer(model_.layers[i], i, update);
      update = a_.normed;
    }
    if (batch_.num_logits) head(logits);
    return status_;
  }

 private:
  // What the block before adds to the residual stream lies in `normed` itself: a row is read before it is written.
  void norm(const float* update, const float* weight, int64_t rows) {
    if (status_) return;
    const float* x = update ? update : a_.residual;
    status_ = splice_cpu_rms_norm(cpu_, a_.normed, x, hidden(model_), update ? a_.residual : nullptr, weight, SPLICE_CPU_F32,
                                  model_.eps, rows, hidden(model_));
  }

  void multiply(float* y, const float* x, const splice_cpu_matrix& w, int64_t rows) {
    if (status_) return;
    status_ = splice_cpu_linear(cpu_, y, w.n, x, w.k, w.packed, w.dtype, w.bias, rows, w.n, w.k);
  }

  void layer(const splice_cpu_layer& l, int64_t index, const float* update) {
    norm(update, l.input_norm, batch_.rows);
    multiply(a_.qkv, a_.normed, l.qkv, batch_.rows);
    attend(index, l.qkv.n);
    multiply(a_.normed, a_.attended, l.output, batch_.rows);
    norm(a_.normed, l.mlp_norm, batch_.rows);
    multiply(a_.gate_up, a_.normed, l.gate_up, batch_.rows);
    if (!status_) status_ = splice_cpu_silu_mul(cpu_, a_.gated, a_.gate_up, l.gate_up.n, batch_.rows, l.down.k);
    multiply(a_.normed, a_.gated, l.down, batch_.rows);
  }

  void attend(int64_t index, int64_t qkv_width) {
    if (status_) return;
    const float* k = a_.qkv + model_.q_heads * kv_.head_dim;
    const float* v = k + kv_.kv_heads * kv_.head_dim;
    status_ = splice_cpu_rope_store(cpu_, a_.rotated, a_.qkv, qkv_width, k, qkv_width, v, qkv_width, model_.cos_sin,
                                    kv_.head_dim, batch_.positions, batch_.slots, batch_.rows, model_.q_heads, kv_, index);
    if (status_) return;
    status_ = splice_cpu_attention(cpu_, a_.attended, a_.rotated, model_.q_heads * kv_.head_dim, kv_, index,
                                   batch_.block_tables, batch_.table_stride, batch_.query_starts, batch_.starts,
                                   batch_.sequences, model_.q_heads, model_.scale);
  }

  // Rows ascend, so moving them to the front overwrites none that is still needed.
  void head(float* logits) {
    const int64_t width = hidden(model_);
    for (int64_t i = 0; i < batch_.num_logits; ++i) {
      std::memmove(a_.normed + i * width, a_.normed + batch_.logit_rows[i] * width, sizeof(float) * width);
      std::memmove(a_.residual + i * width, a_.residual + batch_.logit_rows[i] * width, sizeof(float) * width);
    }
    norm(a_.normed, model_.norm, batch_.num_logits);
    multiply(logits, a_.normed, model_.head, batch_.num_logits);
  }

  splice_cpu* cpu_;
  const splice_cpu_decoder& model_;
  const splice_cpu_batch& batch_;
  splice_cpu_kv kv_;
  Activations a_;
  int status_ = SPLICE_CPU_OK;
};

}  // namespace

size_t splice_cpu_decoder_scratch(const splice_cpu_decoder* model, int64_t rows) {
  return static_cast<size_t>(rows * Widths(*model).total());
}

int splice_cpu_decode(splice_cpu* cpu, const splice_cpu_decoder* model, const splice_cpu_batch* batch, splice_cpu_kv kv,
                      float* scratch, float* logits) {
  return Step(cpu, *model, *batch, kv, cut(*model, batch->rows, scratch)).run(logits);
}
