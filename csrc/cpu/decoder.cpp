// One piece of work for the team a step, with a barrier after each product and attention; what is small is done by the thread
// that arrives last, before it lets the others go on.
#include "decoder.h"

#include "context.h"
#include "decoder_buffers.h"

using namespace splice::cpu;

namespace {

constexpr int64_t FEW_ROWS = 4;  // so many rows are not worth a barrier of their own

// One thread's walk through a step.
class Step {
 public:
  Step(const splice_cpu& cpu, Team& team, const splice_cpu_decoder& model, const splice_cpu_batch& batch, splice_cpu_kv kv,
       const Buffers& a)
      : cpu_(cpu), kernels_(*cpu.kernels), team_(team), model_(model), batch_(batch), kv_(kv), a_(a), hidden_(model.embedding.k) {}

  void run(float* logits) {
    team_.share(batch_.rows, ROW_GRAIN, [&](int64_t first, int64_t last) {
      embed(first, last);
      norm(model_.layers[0].input_norm, forms_of(model_, model_.layers[0].qkv), first, last);
    });
    for (int64_t i = 0; i < model_.num_layers; ++i) layer(i);
    if (batch_.num_logits == 0) return;
    norm_logit_rows();
    Products head = products(model_.head, a_.normed, batch_.num_logits, logits);
    team_products(head, batch_.num_logits, [&](int64_t first, int64_t last) {
      if (model_.logit_softcap > 0.0f)
        kernels_.cap(logits + first * model_.head.n, (last - first) * model_.head.n, model_.logit_softcap);
    });
  }

 private:
  // A product of each part of a matrix, side by side in the columns of y.
  struct Products {
    LinearArgs parts[SPLICE_CPU_MAX_PARTS];
    int count;
  };

  Products products(const splice_cpu_matrix& w, const Rows& input, int64_t rows, float* y,
                    Epilogue epilogue = Epilogue::STORE) const {
    Products out{};
    out.count = w.num_parts;
    int64_t column = 0;
    for (int i = 0; i < w.num_parts; ++i) {
      const splice_cpu_part& part = w.parts[i];
      LinearArgs& args = out.parts[i];
      if (model_.int8 && is_quantized(part.dtype))
        args.x8 = input.int8;
      else
        args.x = input.f32;
      args.x_stride = w.k;
      args.y = y + column;
      args.y_stride = w.n;
      args.packed = part.packed;
      args.dtype = part.dtype;
      args.bias = w.bias ? w.bias + column : nullptr;
      args.m = rows;
      args.n = part.n;
      args.k = w.k;
      args.epilogue = epilogue;
      column += part.n;
    }
    return out;
  }

  // All columns of all rows, then body(first, last) over the rows of the result.
  template <class Body>
  void team_products(const Products& products, int64_t rows, const Body& body) {
    int64_t items = 0;
    for (int i = 0; i < products.count; ++i) items += linear_items(products.parts[i]);
    float* scratch = cpu_.scratch_of(team_);
    const auto multiply = [&](int64_t first, int64_t last) {
      for (int i = 0; i < products.count && first < last; ++i) {
        const int64_t own = linear_items(products.parts[i]);
        if (first < own) kernels_.linear(products.parts[i], first, last < own ? last : own, scratch);
        first = first > own ? first - own : 0;
        last -= own;
      }
    };
    const int64_t grain = grain_of(items, team_.threads(), products.parts[0].epilogue == Epilogue::GATE ? 1 : 4);
    if (rows <= FEW_ROWS) {
      team_.share(items, grain, multiply, [&] { body(int64_t{0}, rows); });
    } else {
      team_.share(items, grain, multiply);
      team_.share(rows, ROW_GRAIN, body);
    }
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
    team_products(products(l.qkv, a_.normed, batch_.rows, a_.qkv), batch_.rows,
                  [&](int64_t first, int64_t last) { rotate(l, index, first, last); });
    attend(l, index);
    add_to_residual(l.output, a_.attended, l.attention_output_norm, [&](int64_t first, int64_t last) {
      norm(l.mlp_norm, forms_of(model_, l.gate_up), first, last);
    });
    gate(l);
    const splice_cpu_layer* next = index + 1 < model_.num_layers ? &l + 1 : nullptr;
    add_to_residual(l.down, a_.gated, l.mlp_output_norm, [&](int64_t first, int64_t last) {
      if (next) norm(next->input_norm, forms_of(model_, next->qkv), first, last);
    });
  }

  // The product joins the residual stream, through a norm of its own in models that have one; then body over the rows.
  template <class Body>
  void add_to_residual(const splice_cpu_matrix& w, const Rows& input, const float* output_norm, const Body& body) {
    if (!output_norm) {
      team_products(products(w, input, batch_.rows, a_.residual, Epilogue::ADD), batch_.rows, body);
      return;
    }
    team_products(products(w, input, batch_.rows, a_.update), batch_.rows, [&](int64_t first, int64_t last) {
      kernels_.rms_norm(
          {a_.update, nullptr, a_.update, hidden_, nullptr, output_norm, SPLICE_CPU_F32, model_.eps, hidden_}, first, last);
      for (int64_t i = first * hidden_; i < last * hidden_; ++i) a_.residual[i] = a_.residual[i] + a_.update[i];
      body(first, last);
    });
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

  void gate(const splice_cpu_layer& l) {
    const int64_t width = l.down.k;
    const Forms forms = forms_of(model_, l.down);
    if (l.gate_up.num_parts == 1 && width % GATE_COLUMNS == 0 && forms.int8 != forms.f32) {
      Products fused = products(l.gate_up, a_.normed, batch_.rows, a_.gated.f32, Epilogue::GATE);
      fused.parts[0].y_stride = width;
      fused.parts[0].y8 = forms.int8 ? a_.gated.int8 : nullptr;
      fused.parts[0].activation = l.activation;
      team_products(fused, 0, [](int64_t, int64_t) {});
      return;
    }
    team_products(products(l.gate_up, a_.normed, batch_.rows, a_.gate_up), batch_.rows, [&](int64_t first, int64_t last) {
      kernels_.gated_mul({a_.gated.f32, a_.gate_up, l.gate_up.n, l.activation, width}, first, last);
      if (forms.int8) kernels_.quantize({a_.gated.int8, a_.gated.f32, width, width}, first, last);
    });
  }

  void norm_logit_rows() {
    team_.share(batch_.num_logits, ROW_GRAIN, [&](int64_t first, int64_t last) {
      const bool int8 = forms_of(model_, model_.head).int8;
      for (int64_t i = first; i < last; ++i)
        kernels_.rms_norm({a_.normed.f32 + i * hidden_, int8 ? a_.normed.int8 + i * (hidden_ / INT8_DEPTH) : nullptr,
                           a_.residual + batch_.logit_rows[i] * hidden_, hidden_, nullptr, model_.norm, SPLICE_CPU_F32,
                           model_.eps, hidden_},
                          0, 1);
    });
  }

  const splice_cpu& cpu_;
  const Kernels& kernels_;
  Team& team_;
  const splice_cpu_decoder& model_;
  const splice_cpu_batch& batch_;
  splice_cpu_kv kv_;
  const Buffers& a_;
  const int64_t hidden_;
};

// Floats of scratch that any operation of the step needs of a thread.
size_t widest(const Kernels& kernels, const splice_cpu_decoder& model, splice_cpu_kv kv) {
  LinearArgs linear{};
  AttentionArgs attention{};
  attention.kv = kv;
  linear.k = model.head.k;
  for (int64_t i = 0; i < model.num_layers; ++i) {
    const splice_cpu_layer& layer = model.layers[i];
    for (const splice_cpu_matrix* w : {&layer.qkv, &layer.output, &layer.down}) linear.k = w->k > linear.k ? w->k : linear.k;
    attention.q_heads = layer.q_heads > attention.q_heads ? layer.q_heads : attention.q_heads;
  }
  const size_t of_linear = kernels.linear_scratch(linear), of_attention = kernels.attention_scratch(attention);
  return of_linear > of_attention ? of_linear : of_attention;
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
  cpu->run([&](Team& team) { Step(*cpu, team, *model, *batch, kv, buffers).run(logits); });
  return SPLICE_CPU_OK;
}
