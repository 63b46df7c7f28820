// The activations of a step, cut from one piece of scratch.
#pragma once

#include "decoder.h"
#include "kernels.h"
#include "quant_layout.h"

namespace splice::cpu {

// What the parts of a matrix read of their input.
struct Forms {
  bool f32, int8;
};
inline Forms forms_of(const splice_cpu_decoder& model, const splice_cpu_matrix& w) {
  Forms forms{false, false};
  for (int i = 0; i < w.num_parts; ++i) (model.int8 && is_quantized(w.parts[i].dtype) ? forms.int8 : forms.f32) = true;
  return forms;
}

// What the first matrices of a layer read of its normed rows.
inline Forms forms_of_attention(const splice_cpu_decoder& model, const splice_cpu_layer& layer) {
  if (!layer.latent) return forms_of(model, layer.qkv);
  const splice_cpu_latent& latent = *layer.latent;
  const Forms q = forms_of(model, latent.q_down.num_parts ? latent.q_down : latent.q), kv = forms_of(model, latent.kv_down);
  return {q.f32 || kv.f32, q.int8 || kv.int8};
}

// What the MLP of a layer, or all that a mixture of experts multiplies its rows with, reads of them.
inline Forms forms_of_mlp(const splice_cpu_decoder& model, const splice_cpu_layer& layer) {
  if (!layer.experts) return forms_of(model, layer.mlp.gate_up);
  const splice_cpu_experts& experts = *layer.experts;
  Forms forms = forms_of(model, experts.router);
  for (const splice_cpu_matrix* w : {&experts.gate_up.first, experts.shared ? &experts.shared->gate_up : nullptr}) {
    if (!w) continue;
    const Forms own = forms_of(model, *w);
    forms = {forms.f32 || own.f32, forms.int8 || own.int8};
  }
  return forms;
}

// Rows on their way into a matrix, in the forms it reads.
struct Rows {
  float* f32;
  Int8Block* int8;

  Rows from(int64_t row, int64_t width) const {
    return {f32 ? f32 + row * width : nullptr, int8 ? int8 + row * (width / INT8_DEPTH) : nullptr};
  }
};

// Rows of one step that chose the same expert, one after another among all rows that experts read.
struct ExpertGroup {
  int64_t expert, first, count;
};

// What a mixture of experts needs of its own: `choices` = rows · top_k rows go through experts.
struct ExpertBuffers {
  float *logits, *weights;      // [rows, num_experts], [rows, top_k]
  int64_t *experts, *places;    // [rows, top_k]: the choices, and where each stands among the choices in order of experts
  int64_t *starts, *num_groups; // [num_experts], [1]
  ExpertGroup* groups;
  Rows chosen, gated;           // [choices, hidden], [choices, intermediate]
  float *gate_up, *parts;       // [choices, 2·intermediate], [choices, hidden]
  float* shared;                // [rows, hidden]
};

// What latent attention needs of its own.
struct LatentBuffers {
  float *q_down, *down, *attended;  // [rows, q_rank], [rows, rank + turning], [rows, q_heads·rank]
  Rows q_normed;
};

class Buffers {
 public:
  float *residual, *update, *qkv, *rotated, *gate_up;
  Rows normed, attended, gated;
  ExpertBuffers experts;
  LatentBuffers latent;
  int32_t *wanted_query_starts, *wanted_starts;  // [rows + 1], [rows]: see wanted_rows.h

  // With no scratch, only measures.
  Buffers(const splice_cpu_decoder& model, int64_t rows, void* scratch) : scratch_(static_cast<uint8_t*>(scratch)) {
    const int64_t hidden = model.embedding.k;
    int64_t qkv_width = 0, heads = 0, turned = 0, intermediate = 0;
    for (int64_t i = 0; i < model.num_layers; ++i) {
      const splice_cpu_layer& layer = model.layers[i];
      qkv_width = layer.qkv.n > qkv_width ? layer.qkv.n : qkv_width;
      heads = layer.output.k > heads ? layer.output.k : heads;
      int64_t own = layer.output.k;
      if (layer.latent) {
        qkv_width = layer.latent->q.n > qkv_width ? layer.latent->q.n : qkv_width;
        own = layer.q_heads * layer.latent->kv_down.n;
      }
      turned = own > turned ? own : turned;
      const splice_cpu_mlp* mlp = layer.experts ? layer.experts->shared : &layer.mlp;
      if (mlp) intermediate = mlp->down.k > intermediate ? mlp->down.k : intermediate;
    }
    residual = take<float>(rows * hidden);
    update = take<float>(rows * hidden);
    qkv = take<float>(rows * qkv_width);
    rotated = take<float>(rows * turned);
    gate_up = take<float>(rows * intermediate * 2);
    normed = take_rows(model, rows, hidden);
    attended = take_rows(model, rows, heads);
    gated = take_rows(model, rows, intermediate);
    take_experts(model, rows);
    take_latents(model, rows);
    wanted_query_starts = take<int32_t>(rows + 1);
    wanted_starts = take<int32_t>(rows);
  }
  size_t bytes() const { return used_; }

 private:
  template <class T>
  T* take(int64_t count) {
    uint8_t* place = scratch_ ? scratch_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(place);
  }
  // Layers may differ in the types of a matrix, so there is room for both forms.
  Rows take_rows(const splice_cpu_decoder& model, int64_t rows, int64_t width) {
    return {take<float>(rows * width), model.int8 ? take<Int8Block>(rows * (width / INT8_DEPTH)) : nullptr};
  }

  void take_experts(const splice_cpu_decoder& model, int64_t rows) {
    const int64_t hidden = model.embedding.k;
    int64_t count = 0, choices = 0, width = 0;
    for (int64_t i = 0; i < model.num_layers; ++i) {
      const splice_cpu_experts* own = model.layers[i].experts;
      if (!own) continue;
      count = own->routing.num_experts > count ? own->routing.num_experts : count;
      choices = rows * own->routing.top_k > choices ? rows * own->routing.top_k : choices;
      width = own->down.first.k > width ? own->down.first.k : width;
    }
    experts.logits = take<float>(rows * count);
    experts.weights = take<float>(choices);
    experts.experts = take<int64_t>(choices);
    experts.places = take<int64_t>(choices);
    experts.starts = take<int64_t>(count);
    experts.num_groups = take<int64_t>(1);
    experts.groups = take<ExpertGroup>(count < choices ? count : choices);
    experts.chosen = take_rows(model, choices, hidden);
    experts.gated = take_rows(model, choices, width);
    experts.gate_up = take<float>(choices * width * 2);
    experts.parts = take<float>(choices * hidden);
    experts.shared = take<float>(count ? rows * hidden : 0);
  }

  void take_latents(const splice_cpu_decoder& model, int64_t rows) {
    int64_t q_rank = 0, cached = 0, attended = 0;
    for (int64_t i = 0; i < model.num_layers; ++i) {
      const splice_cpu_latent* own = model.layers[i].latent;
      if (!own) continue;
      q_rank = own->q_down.n > q_rank ? own->q_down.n : q_rank;
      cached = own->kv_down.n > cached ? own->kv_down.n : cached;
      attended = model.layers[i].q_heads * own->rank > attended ? model.layers[i].q_heads * own->rank : attended;
    }
    latent.q_down = take<float>(rows * q_rank);
    latent.q_normed = take_rows(model, rows, q_rank);
    latent.down = take<float>(rows * cached);
    latent.attended = take<float>(rows * attended);
  }

  uint8_t* scratch_;
  size_t used_ = 0;
};

}  // namespace splice::cpu
