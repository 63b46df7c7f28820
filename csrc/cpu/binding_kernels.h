// engine._native.Kernels: the operations one by one.
#pragma once

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "binding_types.h"

namespace splice::binding {

// Names of instruction sets, in the order of splice_cpu.h.
constexpr const char* ISA_NAMES[] = {"portable", "avx2", "avxvnni", "avx512", "avx512vnni", "amx"};
constexpr int ISAS = sizeof ISA_NAMES / sizeof *ISA_NAMES;

inline const char* isa_name(int isa) { return ISA_NAMES[isa]; }

inline int isa_named(const std::string& name) {
  if (name == "auto") return SPLICE_CPU_ISA_BEST;
  for (int isa = 0; isa < ISAS; ++isa)
    if (name == ISA_NAMES[isa]) return isa;
  throw std::invalid_argument("instruction set " + name + " is unknown: use auto, amx, avx512vnni, avx512, avxvnni, avx2 or portable");
}

inline int activation_named(const std::string& name) {
  if (name == "silu") return SPLICE_CPU_SILU;
  if (name == "gelu_tanh") return SPLICE_CPU_GELU_TANH;
  if (name == "swiglu_oai") return SPLICE_CPU_SWIGLU_OAI;
  throw std::invalid_argument("activation " + name + " is unknown: use silu, gelu_tanh or swiglu_oai");
}

class Kernels {
 public:
  Kernels(const std::string& isa, int num_threads) {
    require(num_threads >= 1, "num_threads must be at least 1");
    check_isa(isa, splice_cpu_create(isa_named(isa), num_threads, &cpu_));
  }
  ~Kernels() { splice_cpu_destroy(cpu_); }
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  splice_cpu* get() const { return cpu_; }
  const char* isa() const { return isa_name(splice_cpu_isa(cpu_)); }
  void set_isa(const std::string& isa) { check_isa(isa, splice_cpu_set_isa(cpu_, isa_named(isa))); }
  int num_threads() const { return splice_cpu_num_threads(cpu_); }
  void set_num_threads(int num_threads) {
    require(num_threads >= 1, "num_threads must be at least 1");
    check(splice_cpu_set_num_threads(cpu_, num_threads));
  }

  void linear(Matrix out, const Matrix& x, const PackedLinear& weight, const std::optional<Vector>& bias, bool int8, bool bf16) {
    require(!(int8 && bf16), "activations are of one type");
    const int activations = bf16 ? SPLICE_CPU_ACTIVATIONS_BF16 : int8 ? SPLICE_CPU_ACTIVATIONS_INT8 : SPLICE_CPU_ACTIVATIONS_F32;
    const int64_t m = size(x, 0), n = weight.n(), k = weight.k();
    require(size(x, 1) == k, "x has another number of columns than the weight");
    require(size(out, 0) == m && size(out, 1) == n, "out must be [rows of x, rows of weight]");
    require(!bias || size(*bias, 0) == n, "bias must have one element per row of weight");
    const int64_t out_stride = row_stride(out, "out"), x_stride = row_stride(x, "x");
    nb::gil_scoped_release release;
    check(splice_cpu_linear(cpu_, out.data(), out_stride, x.data(), x_stride, weight.data(), weight.dtype(), activations,
                            bias ? bias->data() : nullptr, m, n, k));
  }

  void rms_norm(Matrix out, const Matrix& x, std::optional<Matrix> residual, const Array& weight, float eps) {
    require(weight.ndim() == 1 && contiguous(weight) && weight.shape(0) == x.shape(1), "weight must be [columns of x]");
    require(out.shape(0) == x.shape(0) && out.shape(1) == x.shape(1) && contiguous(out), "out must be like x, contiguous");
    require(!residual || (residual->shape(0) == x.shape(0) && residual->shape(1) == x.shape(1) && contiguous(*residual)),
            "residual must be like x, contiguous");
    const int dtype = dtype_of(weight, "weight");
    const int64_t x_stride = row_stride(x, "x");
    nb::gil_scoped_release release;
    check(splice_cpu_rms_norm(cpu_, out.data(), x.data(), x_stride, residual ? residual->data() : nullptr, weight.data(),
                              dtype, eps, size(x, 0), size(x, 1)));
  }

  void gated_mul(Matrix out, const Matrix& gate_up, const std::string& activation) {
    require(out.shape(0) == gate_up.shape(0) && out.shape(1) * 2 == gate_up.shape(1) && contiguous(out),
            "out must be [rows, columns / 2], contiguous");
    const int64_t stride = row_stride(gate_up, "gate_up");
    const int kind = activation_named(activation);
    nb::gil_scoped_release release;
    check(splice_cpu_gated_mul(cpu_, out.data(), gate_up.data(), stride, kind, size(out, 0), size(out, 1)));
  }

  void rope_and_store(Heads out, const Heads& q, const Heads& k, const Heads& v, const Int64s& positions,
                      const Matrix& cos_sin, const Array& kv_cache, int64_t layer, const Int64s& slots) {
    const int64_t tokens = size(q, 0);
    const splice_cpu_kv kv = kv_of(kv_cache, layer, size(q, 2));
    require(contiguous(out) && out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1) && out.shape(2) == q.shape(2),
            "out must be like q, contiguous");
    for (const Heads* one : {&k, &v})
      require(size(*one, 0) == tokens && size(*one, 1) == kv.kv_heads && size(*one, 2) == kv.head_dim,
              "k and v must be [tokens, kv_heads, head_dim]");
    require(size(positions, 0) == tokens && size(slots, 0) == tokens, "positions and slots must have one entry per token");
    require(contiguous(cos_sin) && size(cos_sin, 1) <= kv.head_dim && size(cos_sin, 1) % 2 == 0,
            "cos_sin must be contiguous [positions, rotary_dim], rotary_dim even and at most head_dim");
    for (int64_t i = 0; i < tokens; ++i) {
      require(positions.data()[i] >= 0 && positions.data()[i] < size(cos_sin, 0), "a position is outside cos_sin");
      require(slots.data()[i] < size(kv_cache, 0) * kv.block_tokens, "a slot is outside kv_cache");
    }
    const int64_t q_stride = row_stride(q, "q"), k_stride = row_stride(k, "k"), v_stride = row_stride(v, "v");
    nb::gil_scoped_release release;
    check(splice_cpu_rope_store(cpu_, out.data(), q.data(), q_stride, k.data(), k_stride, v.data(), v_stride,
                                cos_sin.data(), size(cos_sin, 1), positions.data(), slots.data(), tokens, size(q, 1), kv,
                                layer));
  }

  void paged_attention(Heads out, const Heads& q, const Array& kv_cache, int64_t layer, const Table& block_tables,
                       const Int32s& query_starts, const Int32s& starts, float scale, int64_t window, float softcap,
                       const std::optional<Vector>& sinks) {
    require(window >= 0 && softcap >= 0.0f, "window and softcap must not be negative");
    require(!sinks || size(*sinks, 0) == size(q, 1), "sinks must have one element per query head");
    const splice_cpu_kv kv = kv_of(kv_cache, layer, size(q, 2));
    const int64_t sequences = size(starts, 0);
    require(contiguous(out) && out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1) && out.shape(2) == q.shape(2),
            "out must be like q, contiguous");
    require(size(q, 1) % kv.kv_heads == 0, "query heads must be a multiple of KV heads");
    require(size(query_starts, 0) == sequences + 1 && size(block_tables, 0) == sequences,
            "query_starts and block_tables must match starts");
    check_tables(block_tables, query_starts, starts, kv, size(kv_cache, 0), size(q, 0));
    const int64_t q_stride = row_stride(q, "q");
    nb::gil_scoped_release release;
    check(splice_cpu_attention(cpu_, out.data(), q.data(), q_stride, kv, layer, block_tables.data(), size(block_tables, 1),
                               query_starts.data(), starts.data(), sequences, size(q, 1), scale, window, softcap,
                               sinks ? sinks->data() : nullptr));
  }

  void latent_attention(Heads out, const Heads& q, const Array& kv_cache, int64_t layer, const Table& block_tables,
                        const Int32s& query_starts, const Int32s& starts, float scale) {
    const splice_cpu_kv kv = latent_kv_of(kv_cache, layer, size(q, 2));
    const int64_t sequences = size(starts, 0), rank = size(out, 2);
    require(contiguous(out) && contiguous(q) && out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1),
            "out must be [rows, heads, rank] and q [rows, heads, rank + rope], contiguous");
    require(rank > 0 && rank <= kv.head_dim, "rank must be positive, at most the width of kv_cache");
    require(size(query_starts, 0) == sequences + 1 && size(block_tables, 0) == sequences,
            "query_starts and block_tables must match starts");
    check_tables(block_tables, query_starts, starts, kv, size(kv_cache, 0), size(q, 0));
    nb::gil_scoped_release release;
    check(splice_cpu_latent_attention(cpu_, out.data(), q.data(), kv, layer, block_tables.data(), size(block_tables, 1),
                                      query_starts.data(), starts.data(), sequences, size(q, 1), rank, scale));
  }

 private:
  static void check_isa(const std::string& isa, int status) {
    if (status == SPLICE_CPU_UNSUPPORTED) throw std::invalid_argument("this machine has no " + isa);
    check(status);
  }

  splice_cpu* cpu_ = nullptr;
};

}  // namespace splice::binding
