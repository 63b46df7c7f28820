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

// Rows on their way into a matrix, in the forms it reads.
struct Rows {
  float* f32;
  Int8Block* int8;
};

class Buffers {
 public:
  float *residual, *update, *qkv, *rotated, *gate_up;
  Rows normed, attended, gated;

  // With no scratch, only measures.
  Buffers(const splice_cpu_decoder& model, int64_t rows, void* scratch) : scratch_(static_cast<uint8_t*>(scratch)) {
    const int64_t hidden = model.embedding.k;
    int64_t qkv_width = 0, heads = 0, intermediate = 0;
    for (int64_t i = 0; i < model.num_layers; ++i) {
      const splice_cpu_layer& layer = model.layers[i];
      qkv_width = layer.qkv.n > qkv_width ? layer.qkv.n : qkv_width;
      heads = layer.output.k > heads ? layer.output.k : heads;
      intermediate = layer.down.k > intermediate ? layer.down.k : intermediate;
    }
    residual = take<float>(rows * hidden);
    update = take<float>(rows * hidden);
    qkv = take<float>(rows * qkv_width);
    rotated = take<float>(rows * heads);
    gate_up = take<float>(rows * intermediate * 2);
    normed = take_rows(model, rows, hidden);
    attended = take_rows(model, rows, heads);
    gated = take_rows(model, rows, intermediate);
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

  uint8_t* scratch_;
  size_t used_ = 0;
};

}  // namespace splice::cpu
