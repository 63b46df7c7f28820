// engine._native.Decoder: a whole step in one call.
#pragma once

#include <mutex>
#include "binding_experts.h"
#include "binding_kernels.h"
#include "binding_latent.h"
#include "binding_weights.h"
#include "context.h"
#include "decoder.h"

namespace splice::binding {

// Keeps alive what it points into: kernels, packed weights and tensors.
class Decoder {
 public:
  Decoder(nb::object kernels, nb::object embedding, nb::object head, const Vector& norm, float eps, int64_t kv_heads,
          int64_t head_dim, float embedding_scale, float logit_softcap, bool int8, bool bf16)
      : kernels_(nb::cast<Kernels*>(kernels)), kv_heads_(kv_heads), head_dim_(head_dim) {
    weights_.keep(kernels);
    require(kv_heads > 0, "num_kv_heads must be positive");
    require(head_dim > 0 && head_dim <= SPLICE_CPU_MAX_HEAD_DIM, "head_dim must be positive, at most 1024");
    require(logit_softcap >= 0.0f, "logit_softcap must not be negative");
    model_.embedding = matrix(embedding, std::nullopt);
    model_.head = matrix(head, std::nullopt);
    require(model_.embedding.num_parts == 1 && model_.head.num_parts == 1, "an embedding and a head have one type");
    require(model_.head.n == model_.embedding.n && model_.head.k == model_.embedding.k, "head and embedding differ in shape");
    model_.norm = vector(norm, model_.embedding.k);
    model_.eps = eps;
    model_.embedding_scale = embedding_scale;
    model_.logit_softcap = logit_softcap;
    require(!(int8 && bf16), "activations are of one type");
    model_.int8 = int8;
    model_.bf16 = bf16;
  }

  void add_layer(const Vector& input_norm, nb::object qkv, const std::optional<Vector>& qkv_bias, nb::object latent,
                 nb::object output, const std::optional<Vector>& output_bias, const Vector& mlp_norm, nb::object gate_up,
                 const std::optional<Vector>& gate_up_bias, nb::object down, const std::optional<Vector>& down_bias,
                 nb::object experts, const Matrix& cos_sin, int64_t q_heads, float scale, const std::string& activation,
                 const std::optional<Vector>& q_norm, const std::optional<Vector>& k_norm, const std::optional<Vector>& sinks,
                 const std::optional<Vector>& attention_output_norm, const std::optional<Vector>& mlp_output_norm,
                 int64_t window, float softcap) {
    const int64_t hidden = model_.embedding.k;
    splice_cpu_layer layer{};
    if (latent.is_none()) {
      layer.qkv = matrix(qkv, qkv_bias);
      require(layer.qkv.k == hidden && layer.qkv.n == (q_heads + 2 * kv_heads_) * head_dim_, "qkv has the wrong shape");
    } else {
      weights_.keep(latent);
      layer.latent = &nb::cast<const Latent*>(latent)->get();
      require(layer.latent->kv_down.k == hidden && layer.latent->kv_down.n == head_dim_ && kv_heads_ == 1,
              "kv_down has the wrong shape");
      require(layer.latent->q.n == q_heads * (layer.latent->still + layer.latent->turning), "q has the wrong shape");
      require(size(cos_sin, 1) == layer.latent->turning, "cos_sin has other columns than dimensions that turn");
    }
    require(layers_.empty() || !layer.latent == !layers_[0].latent, "all layers have latents or none");
    layer.output = matrix(output, output_bias);
    if (experts.is_none()) {
      layer.mlp = {matrix(gate_up, gate_up_bias), matrix(down, down_bias), activation_named(activation)};
      require(layer.mlp.gate_up.k == hidden && layer.mlp.gate_up.n == 2 * layer.mlp.down.k, "gate_up has the wrong shape");
      require(layer.mlp.down.n == hidden, "down has the wrong shape");
    } else {
      weights_.keep(experts);
      layer.experts = &nb::cast<const Experts*>(experts)->get();
      require(layer.experts->router.k == hidden, "experts have the wrong shape");
    }
    layer.input_norm = vector(input_norm, hidden);
    layer.mlp_norm = vector(mlp_norm, hidden);
    layer.attention_output_norm = vector(attention_output_norm, hidden);
    layer.mlp_output_norm = vector(mlp_output_norm, hidden);
    layer.q_norm = vector(q_norm, head_dim_);
    layer.k_norm = vector(k_norm, head_dim_);
    layer.sinks = vector(sinks, q_heads);
    require(q_heads > 0 && q_heads % kv_heads_ == 0, "num_heads must be a multiple of num_kv_heads");
    require(contiguous(cos_sin) && size(cos_sin, 1) <= head_dim_ && size(cos_sin, 1) % 2 == 0,
            "cos_sin must be contiguous [positions, rotary_dim], rotary_dim even and at most head_dim");
    require(layers_.empty() || size(cos_sin, 0) == positions_, "tables of rotations differ in length");
    require(window >= 0 && softcap >= 0.0f, "window and softcap must not be negative");
    require(layer.output.n == hidden && layer.output.k == q_heads * (layer.latent ? layer.latent->value : head_dim_),
            "output has the wrong shape");
    positions_ = size(cos_sin, 0);
    layer.cos_sin = weights_.table(cos_sin);
    layer.rotary_dim = size(cos_sin, 1);
    layer.q_heads = q_heads;
    layer.scale = scale;
    layer.window = window;
    layer.softcap = softcap;
    layers_.push_back(layer);
    model_.layers = layers_.data();
    model_.num_layers = static_cast<int64_t>(layers_.size());
  }

  void step(Matrix logits, const Int64s& token_ids, const Int64s& positions, const Int64s& slots, const Table& block_tables,
            const Int32s& query_starts, const Int32s& starts, const Int64s& logit_rows, const Array& kv_cache) {
    require(!layers_.empty(), "a decoder needs a layer");
    const splice_cpu_kv kv = layers_[0].latent ? latent_kv_of(kv_cache, 0, head_dim_) : kv_of(kv_cache, 0, head_dim_);
    require(kv.layers == model_.num_layers && kv.kv_heads == kv_heads_, "kv_cache belongs to another model");
    const int64_t rows = size(token_ids, 0), sequences = size(starts, 0);
    require(size(positions, 0) == rows && size(slots, 0) == rows, "positions and slots must have one entry per token");
    for (int64_t i = 0; i < rows; ++i) {
      require(token_ids.data()[i] >= 0 && token_ids.data()[i] < model_.embedding.n, "a token id is outside the vocabulary");
      require(positions.data()[i] >= 0 && positions.data()[i] < positions_, "a position is outside cos_sin");
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
  splice_cpu_matrix matrix(const nb::object& weight, const std::optional<Vector>& bias) { return weights_.matrix(weight, bias); }
  template <class Values>
  const float* vector(const Values& values, int64_t wanted) {
    return weights_.vector(values, wanted);
  }

  Kernels* kernels_;
  Weights weights_;
  int64_t kv_heads_, head_dim_, positions_ = 0;
  splice_cpu_decoder model_{};
  std::vector<splice_cpu_layer> layers_;
  std::mutex mutex_;
  cpu::Scratch scratch_;
};

}  // namespace splice::binding
