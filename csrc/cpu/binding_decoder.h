// engine._native.Decoder: a whole step in one call.
#pragma once

#include <mutex>
#include <optional>
#include <vector>

#include "binding_kernels.h"
#include "context.h"
#include "decoder.h"

namespace splice::binding {

// Keeps alive what it points into: kernels, packed weights and tensors.
class Decoder {
 public:
  Decoder(nb::object kernels, nb::object embedding, nb::object head, const Vector& norm, const Matrix& cos_sin, float eps,
          float scale, int64_t q_heads, int64_t kv_heads, int64_t head_dim, bool int8)
      : kernels_(nb::cast<Kernels*>(kernels)), owned_{kernels}, cos_sin_(cos_sin), kv_heads_(kv_heads), head_dim_(head_dim) {
    require(q_heads > 0 && kv_heads > 0 && q_heads % kv_heads == 0, "num_heads must be a multiple of num_kv_heads");
    require(head_dim > 0 && head_dim % 2 == 0 && head_dim <= SPLICE_CPU_MAX_HEAD_DIM, "head_dim must be even, at most 1024");
    require(contiguous(cos_sin) && size(cos_sin, 1) == head_dim, "cos_sin must be contiguous [positions, head_dim]");
    model_.embedding = matrix(embedding, std::nullopt);
    model_.head = matrix(head, std::nullopt);
    require(model_.head.n == model_.embedding.n && model_.head.k == model_.embedding.k, "head and embedding differ in shape");
    model_.norm = vector(norm, model_.embedding.k);
    model_.cos_sin = cos_sin.data();
    model_.eps = eps;
    model_.scale = scale;
    model_.q_heads = q_heads;
    model_.int8 = int8;
  }

  void add_layer(const Vector& input_norm, nb::object qkv, const std::optional<Vector>& qkv_bias, nb::object output,
                 const std::optional<Vector>& output_bias, const Vector& mlp_norm, nb::object gate_up,
                 const std::optional<Vector>& gate_up_bias, nb::object down, const std::optional<Vector>& down_bias) {
    const int64_t hidden = model_.embedding.k;
    splice_cpu_layer layer{vector(input_norm, hidden),    vector(mlp_norm, hidden),       matrix(qkv, qkv_bias),
                           matrix(output, output_bias),   matrix(gate_up, gate_up_bias),  matrix(down, down_bias)};
    require(layer.qkv.k == hidden && layer.qkv.n == (model_.q_heads + 2 * kv_heads_) * head_dim_, "qkv has the wrong shape");
    require(layer.output.n == hidden && layer.output.k == model_.q_heads * head_dim_, "output has the wrong shape");
    require(layer.gate_up.k == hidden && layer.gate_up.n == 2 * layer.down.k, "gate_up has the wrong shape");
    require(layer.down.n == hidden, "down has the wrong shape");
    require(layers_.empty() || layers_[0].down.k == layer.down.k, "layers differ in their intermediate size");
    layers_.push_back(layer);
    model_.layers = layers_.data();
    model_.num_layers = static_cast<int64_t>(layers_.size());
  }

  void step(Matrix logits, const Int64s& token_ids, const Int64s& positions, const Int64s& slots, const Table& block_tables,
            const Int32s& query_starts, const Int32s& starts, const Int64s& logit_rows, const Array& kv_cache) {
    require(!layers_.empty(), "a decoder needs a layer");
    const splice_cpu_kv kv = kv_of(kv_cache, 0, head_dim_);
    require(kv.layers == model_.num_layers && kv.kv_heads == kv_heads_, "kv_cache belongs to another model");
    const int64_t rows = size(token_ids, 0), sequences = size(starts, 0);
    require(size(positions, 0) == rows && size(slots, 0) == rows, "positions and slots must have one entry per token");
    for (int64_t i = 0; i < rows; ++i) {
      require(token_ids.data()[i] >= 0 && token_ids.data()[i] < model_.embedding.n, "a token id is outside the vocabulary");
      require(positions.data()[i] >= 0 && positions.data()[i] < size(cos_sin_, 0), "a position is outside cos_sin");
      require(slots.data()[i] < size(kv_cache, 0) * kv.block_tokens, "a slot is outside kv_cache");
    }
    require(size(query_starts, 0) == sequences + 1 && size(block_tables, 0) == sequences,
            "query_starts and block_tables must match starts");
    check_tables(block_tables, query_starts, starts, kv, size(kv_cache, 0), rows);
    for (int64_t i = 0; i < size(logit_rows, 0); ++i)
      require(logit_rows.data()[i] < rows && logit_rows.data()[i] > (i ? logit_rows.data()[i - 1] : -1),
              "logit_rows must ascend within the step's rows");
    require(contiguous(logits) && logits.shape(0) == logit_rows.shape(0) && size(logits, 1) == model_.head.n,
            "logits must be contiguous [logit_rows, vocab]");
    const splice_cpu_batch batch{rows,           sequences,          size(block_tables, 1), size(logit_rows, 0),
                                 token_ids.data(), positions.data(), slots.data(),          logit_rows.data(),
                                 block_tables.data(), query_starts.data(), starts.data()};
    float* out = logits.data();
    nb::gil_scoped_release release;
    const std::lock_guard lock(mutex_);  // of the scratch: one step at a time
    if (!scratch_.reserve(splice_cpu_decoder_scratch(&model_, rows))) throw std::bad_alloc();
    check(splice_cpu_decode(kernels_->get(), &model_, &batch, kv, scratch_.as<void>(), out));
  }

 private:
  splice_cpu_matrix matrix(const nb::object& weight, const std::optional<Vector>& bias) {
    const auto* packed = nb::cast<const PackedLinear*>(weight);
    owned_.push_back(weight);
    return {packed->data(), packed->dtype(), packed->n(), packed->k(), bias ? vector(*bias, packed->n()) : nullptr};
  }
  const float* vector(const Vector& values, int64_t wanted) {
    require(size(values, 0) == wanted, "a norm or bias has the wrong length");
    tensors_.push_back(values);
    return values.data();
  }

  Kernels* kernels_;
  std::vector<nb::object> owned_;
  std::vector<Vector> tensors_;
  Matrix cos_sin_;
  int64_t kv_heads_, head_dim_;
  splice_cpu_decoder model_{};
  std::vector<splice_cpu_layer> layers_;
  std::mutex mutex_;
  cpu::Scratch scratch_;
};

}  // namespace splice::binding
