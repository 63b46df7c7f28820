// One piece of work for the team a step, with a barrier after each product and attention; what is small is done by the thread
// that arrives last, before it lets the others go on.
#include "decoder.h"

#include "context.h"
#include "decoder_buffers.h"
#include "expert_step.h"
#include "latent_step.h"
#include "products.h"
#include "wanted_rows.h"

using namespace splice::cpu;

namespace {

// One thread's walk through a step.
class Step {
 public:
  // `few_queries`: of the last layer, see last_queries.
  Step(const splice_cpu& cpu, Team& team, const splice_cpu_decoder& model, const splice_cpu_batch& batch, splice_cpu_kv kv,
       const Buffers& a, bool few_queries)
      : cpu_(cpu), kernels_(*cpu.kernels), team_(team), model_(model), batch_(batch), kv_(kv), a_(a),
        hidden_(model.embedding.k), few_queries_(few_queries) {}

  void run(float* logits) {
    team_.share(batch_.rows, ROW_GRAIN, [&](int64_t first, int64_t last) {
      embed(first, last);
      norm(model_.layers[0].input_norm, forms_of_attention(model_, model_.layers[0]), first, last);
    });
    for (int64_t i = 0; i < model_.num_layers; ++i) layer(i);
    if (batch_.num_logits == 0) return;
    team_.share(batch_.rows, ROW_GRAIN,
                [&](int64_t first, int64_t last) { norm(model_.norm, forms_of(model_, model_.head), first, last); });
    Products head = products(model_.head, a_.normed, batch_.num_logits, logits);
    team_products(head, batch_.num_logits, [&](int64_t first, int64_t last) {
      if (model_.logit_softcap > 0.0f)
        kernels_.cap(logits + first * model_.head.n, (last - first) * model_.head.n, model_.logit_softcap);
    });
  }

 private:
  Products products(const splice_cpu_matrix& w, const Rows& input, int64_t rows, float* y,
                    Epilogue epilogue = Epilogue::STORE) const {
    return products_of(model_, w, input, rows, y, epilogue);
  }

  template <class Body>
  void team_products(const Products& products, int64_t rows, const Body& body) {
    splice::cpu::team_products(cpu_, team_, products, rows, body);
  }

  void embed(int64_t first, int64_t last) const {
    const splice_cpu_part& table = model_.embedding.parts[0];
    float* rows = a_.residual + first * hidden_;
    splice_cpu_packed_rows(table.packed, table.dtype, hidden_, batch_.token_ids + first, last - first, rows);
    if (model_.embedding_scale != 1.0f)
      for (int64_t i = 0; i < (last - first) * hidden_; ++i) rows[i] = rows[i] * model_.embedding_scale;
  }

  // Rows of the residual stream, normed for a matrix that reads them in these forms.
  void norm(const float* weight, Forms forms, int64_t first, int64_t last) const {
    NormArgs args{a_.normed.f32, nullptr, a_.residual, hidden_, nullptr, weight, SPLICE_CPU_F32, model_.eps, hidden_};
    if (forms.f32) kernels_.rms_norm(args, first, last);
    args.y8 = a_.normed.int8;
    if (forms.int8) kernels_.rms_norm(args, first, last);
  }

  void layer(int64_t index) {
    const splice_cpu_layer& l = model_.layers[index];
    const bool is_last = index + 1 == model_.num_layers;
    if (l.latent) {
      LatentStep(cpu_, team_, model_, l, index, batch_, kv_, a_).run();
    } else {
      team_products(products(l.qkv, a_.normed, batch_.rows, a_.qkv), batch_.rows,
                    [&](int64_t first, int64_t last) { rotate(l, index, first, last); });
      if (is_last && few_queries_) keep_wanted_queries(l);
      attend(l, index);
    }
    if (is_last) keep_wanted_rows(l);
    if (batch_.rows == 0) return;
    add_to_residual(l.output, a_.attended, l.attention_output_norm, [&](int64_t first, int64_t last) {
      norm(l.mlp_norm, forms_of_mlp(model_, l), first, last);
    });
    const splice_cpu_layer* next = is_last ? nullptr : &l + 1;
    const auto norm_for_next = [&](int64_t first, int64_t last) {
      if (next) norm(next->input_norm, forms_of_attention(model_, *next), first, last);
    };
    if (l.experts) {
      mix(l, norm_for_next);
    } else {
      gate(l.mlp);
      add_to_residual(l.mlp.down, a_.gated, l.mlp_output_norm, norm_for_next);
    }
  }

  // A mixture of experts, its sum into the residual stream; then body over the rows.
  template <class Body>
  void mix(const splice_cpu_layer& l, const Body& body) {
    const splice_cpu_experts& experts = *l.experts;
    ExpertStep step(cpu_, team_, model_, experts, a_.normed, a_.experts, batch_.rows);
    const bool few = batch_.rows <= FEW_ROWS;
    team_products(products(experts.router, a_.normed, batch_.rows, a_.experts.logits), batch_.rows,
                  [&](int64_t first, int64_t last) {
                    step.route(first, last);
                    if (!few) return;
                    step.group();
                    step.gather(first, last);
                  });
    if (!few) {
      team_.share(1, 1, [&](int64_t, int64_t) { step.group(); });
      team_.share(batch_.rows, ROW_GRAIN, [&](int64_t first, int64_t last) { step.gather(first, last); });
    }
    if (experts.shared) {
      gate(*experts.shared);
      team_products(products(experts.shared->down, a_.gated, batch_.rows, a_.experts.shared), 0, [](int64_t, int64_t) {});
    }
    const auto finish = [&](int64_t first, int64_t last) {
      step.combine(a_.update, first, last);
      join(l.mlp_output_norm, first, last);
      body(first, last);
    };
    step.multiply([&] {
      if (few) finish(int64_t{0}, batch_.rows);
    });
    if (!few) team_.share(batch_.rows, ROW_GRAIN, finish);
  }

  // The product joins the residual stream, through a norm of its own in models that have one; then body over the rows.
  template <class Body>
  void add_to_residual(const splice_cpu_matrix& w, const Rows& input, const float* output_norm, const Body& body) {
    if (!output_norm) {
      team_products(products(w, input, batch_.rows, a_.residual, Epilogue::ADD), batch_.rows, body);
      return;
    }
    team_products(products(w, input, batch_.rows, a_.update), batch_.rows, [&](int64_t first, int64_t last) {
      join(output_norm, first, last);
      body(first, last);
    });
  }

  // Rows of the update join the residual stream, through a norm if there is one.
  void join(const float* output_norm, int64_t first, int64_t last) const {
    if (output_norm)
      kernels_.rms_norm(
          {a_.update, nullptr, a_.update, hidden_, nullptr, output_norm, SPLICE_CPU_F32, model_.eps, hidden_}, first, last);
    for (int64_t i = first * hidden_; i < last * hidden_; ++i) a_.residual[i] = a_.residual[i] + a_.update[i];
  }

  void rotate(const splice_cpu_layer& l, int64_t index, int64_t first, int64_t last) const {
    const float* k = a_.qkv + l.q_heads * kv_.head_dim;
    const float* v = k + kv_.kv_heads * kv_.head_dim;
    kernels_.rope_store({a_.rotated,   a_.qkv,       l.qkv.n,          k,            l.qkv.n,   v,   l.qkv.n, l.cos_sin,
                         l.rotary_dim, batch_.positions, batch_.slots, l.q_heads,    kv_,       index, l.q_norm, l.k_norm,
                         model_.eps},
                        first, last);
  }

  void attend(const splice_cpu_layer& l, int64_t index) {
    const Forms forms = forms_of(model_, l.output);
    // Whole blocks can be quantised as soon as a group of heads is done.
    const bool fused = forms.int8 && !forms.f32 && l.q_heads / kv_.kv_heads * kv_.head_dim % INT8_DEPTH == 0;
    team_attention(cpu_, team_,
                   {a_.attended.f32, fused ? a_.attended.int8 : nullptr, a_.rotated, l.output.k, kv_, index,
                    batch_.block_tables, batch_.table_stride, batch_.query_starts, batch_.starts, batch_.sequences, l.q_heads,
                    l.scale, l.window, l.softcap, l.sinks},
                   [] {});
    if (forms.int8 && !fused)
      team_.share(batch_.rows, ROW_GRAIN, [&](int64_t first, int64_t last) {
        kernels_.quantize({a_.attended.int8, a_.attended.f32, l.output.k, l.output.k}, first, last);
      });
  }

  // Once the last layer has cached its keys and values, all rows but those whose logits are wanted leave the step.
  void keep_wanted_queries(const splice_cpu_layer& l) {
    if (batch_.rows == batch_.num_logits) return;
    team_.share(1, 1, [&](int64_t, int64_t) {
      keep_wanted(batch_, a_.residual, hidden_);
      keep_wanted(batch_, a_.rotated, l.output.k);
    });
    batch_.query_starts = a_.wanted_query_starts;
    batch_.starts = a_.wanted_starts;
    batch_.rows = batch_.num_logits;
  }
  void keep_wanted_rows(const splice_cpu_layer& l) {
    if (batch_.rows == batch_.num_logits) return;
    team_.share(1, 1, [&](int64_t, int64_t) {
      const Forms forms = forms_of(model_, l.output);
      keep_wanted(batch_, a_.residual, hidden_);
      if (forms.f32) keep_wanted(batch_, a_.attended.f32, l.output.k);
      if (forms.int8) keep_wanted(batch_, a_.attended.int8, l.output.k / INT8_DEPTH);
    });
    batch_.rows = batch_.num_logits;
  }

  void gate(const splice_cpu_mlp& mlp) {
    const int64_t width = mlp.down.k;
    const Forms forms = forms_of(model_, mlp.down);
    if (gates_at_once(mlp.gate_up, forms)) {
      const Products fused =
          gate_products(products(mlp.gate_up, a_.normed, batch_.rows, nullptr), a_.gated, forms, mlp.activation);
      team_products(fused, 0, [](int64_t, int64_t) {});
      return;
    }
    team_products(products(mlp.gate_up, a_.normed, batch_.rows, a_.gate_up), batch_.rows, [&](int64_t first, int64_t last) {
      kernels_.gated_mul({a_.gated.f32, a_.gate_up, mlp.gate_up.n, mlp.activation, width}, first, last);
      if (forms.int8) kernels_.quantize({a_.gated.int8, a_.gated.f32, width, width}, first, last);
    });
  }

  const splice_cpu& cpu_;
  const Kernels& kernels_;
  Team& team_;
  const splice_cpu_decoder& model_;
  splice_cpu_batch batch_;  // rows that are still in the step
  splice_cpu_kv kv_;
  const Buffers& a_;
  const int64_t hidden_;
  const bool few_queries_;
};

// Floats of scratch that any operation of the step needs of a thread.
size_t widest(const Kernels& kernels, const splice_cpu_decoder& model, splice_cpu_kv kv) {
  LinearArgs linear{};
  AttentionArgs attention{};
  attention.kv = kv;
  linear.k = model.head.k;
  linear.bf16 = model.bf16;
  size_t most = 0;
  for (int64_t i = 0; i < model.num_layers; ++i) {
    const splice_cpu_layer& layer = model.layers[i];
    for (const splice_cpu_matrix* w : {&layer.qkv, &layer.output}) linear.k = w->k > linear.k ? w->k : linear.k;
    for (const splice_cpu_mlp* mlp : {layer.experts ? layer.experts->shared : &layer.mlp})
      if (mlp) linear.k = mlp->down.k > linear.k ? mlp->down.k : linear.k;
    if (layer.experts) {
      const int64_t k = layer.experts->down.first.k;
      linear.k = k > linear.k ? k : linear.k;
      const size_t own = kernels.route_scratch(layer.experts->routing);
      most = own > most ? own : most;
    }
    if (!layer.latent) {
      attention.q_heads = layer.q_heads > attention.q_heads ? layer.q_heads : attention.q_heads;
      continue;
    }
    for (const int64_t k : {layer.latent->q.k, layer.latent->absorb.first.k, layer.latent->expand.first.k})
      linear.k = k > linear.k ? k : linear.k;
    LatentArgs latent{};
    latent.kv = kv;
    latent.q_heads = layer.q_heads;
    latent.rank = layer.latent->rank;
    const size_t own = kernels.latent_scratch(latent);
    most = own > most ? own : most;
  }
  const size_t of_linear = kernels.linear_scratch(linear), of_attention = kernels.attention_scratch(attention);
  for (const size_t own : {of_linear, of_attention}) most = own > most ? own : most;
  return most;
}

}  // namespace

size_t splice_cpu_decoder_scratch(const splice_cpu_decoder* model, int64_t rows) {
  return Buffers(*model, rows, nullptr).bytes();
}

int splice_cpu_decode(splice_cpu* cpu, const splice_cpu_decoder* model, const splice_cpu_batch* batch, splice_cpu_kv kv,
                      void* scratch, float* logits) {
  const std::lock_guard lock(cpu->mutex);
  if (!cpu->reserve(widest(*cpu->kernels, *model, kv))) return SPLICE_CPU_NO_MEMORY;
  const Buffers buffers(*model, batch->rows, scratch);
  const bool few_queries = last_queries(*batch, buffers.wanted_query_starts, buffers.wanted_starts);
  cpu->run([&](Team& team) { Step(*cpu, team, *model, *batch, kv, buffers, few_queries).run(logits); });
  return SPLICE_CPU_OK;
}
