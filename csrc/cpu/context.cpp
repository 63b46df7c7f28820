// Picks an instruction set, cuts work into items and hands them to the team.
#include "context.h"

#include <exception>

#include "isa.h"
#include "latent_items.h"
#include "quant_layout.h"
#include "splice_cpu.h"

using splice::cpu::AttentionArgs;
using splice::cpu::Kernels;
using splice::cpu::LinearArgs;
using splice::cpu::Pool;
using splice::cpu::Team;

namespace {

// The table of an instruction set that was built and that this machine has, or null.
const Kernels* kernels_for(int isa) {
  if (!splice::cpu::machine_has(isa)) return nullptr;
  switch (isa) {
    case SPLICE_CPU_ISA_PORTABLE: return &splice::cpu::portable_kernels();
#if defined(SPLICE_HAS_avx2)
    case SPLICE_CPU_ISA_AVX2: return &splice::cpu::avx2_kernels();
#endif
#if defined(SPLICE_HAS_avxvnni)
    case SPLICE_CPU_ISA_AVX_VNNI: return &splice::cpu::avxvnni_kernels();
#endif
#if defined(SPLICE_HAS_avx512)
    case SPLICE_CPU_ISA_AVX512: return &splice::cpu::avx512_kernels();
#endif
#if defined(SPLICE_HAS_avx512vnni)
    case SPLICE_CPU_ISA_AVX512_VNNI: return &splice::cpu::avx512vnni_kernels();
#endif
#if defined(SPLICE_HAS_amx)
    case SPLICE_CPU_ISA_AMX: return &splice::cpu::amx_kernels();
#endif
    default: return nullptr;
  }
}

}  // namespace

int splice_cpu_isa_supported(int isa) { return kernels_for(isa) != nullptr; }

int splice_cpu_create(int isa, int num_threads, splice_cpu** out) {
  try {
    auto cpu = std::make_unique<splice_cpu>();
    if (const int status = splice_cpu_set_isa(cpu.get(), isa); status != SPLICE_CPU_OK) return status;
    cpu->pool = std::make_unique<Pool>(num_threads);
    *out = cpu.release();
  } catch (const std::exception&) {
    return SPLICE_CPU_NO_MEMORY;
  }
  return SPLICE_CPU_OK;
}

int splice_cpu_set_isa(splice_cpu* cpu, int isa) {
  if (isa == SPLICE_CPU_ISA_BEST) {
    isa = SPLICE_CPU_ISA_AMX;
    while (!splice_cpu_isa_supported(isa)) --isa;
  }
  if (!splice_cpu_isa_supported(isa)) return SPLICE_CPU_UNSUPPORTED;
  const std::lock_guard lock(cpu->mutex);
  cpu->isa = isa;
  cpu->kernels = kernels_for(isa);
  return SPLICE_CPU_OK;
}

void splice_cpu_destroy(splice_cpu* cpu) { delete cpu; }
int splice_cpu_isa(const splice_cpu* cpu) { return cpu->isa; }
int splice_cpu_num_threads(const splice_cpu* cpu) { return cpu->pool->num_threads(); }

int splice_cpu_set_num_threads(splice_cpu* cpu, int num_threads) {
  const std::lock_guard lock(cpu->mutex);
  if (num_threads == cpu->pool->num_threads()) return SPLICE_CPU_OK;
  try {
    cpu->pool = std::make_unique<Pool>(num_threads);
  } catch (const std::exception&) {
    return SPLICE_CPU_NO_MEMORY;
  }
  return SPLICE_CPU_OK;
}

int splice_cpu_linear(splice_cpu* cpu, float* y, int64_t y_stride, const float* x, int64_t x_stride, const void* packed,
                      int dtype, int activations, const float* bias, int64_t m, int64_t n, int64_t k) {
  if (m == 0 || n == 0) return SPLICE_CPU_OK;
  const std::lock_guard lock(cpu->mutex);
  LinearArgs args{y, y_stride, nullptr, x, x_stride, nullptr, packed, dtype, bias, m, n, k, splice::cpu::Epilogue::STORE, 0,
                  activations == SPLICE_CPU_ACTIVATIONS_BF16};
  const bool int8 = activations == SPLICE_CPU_ACTIVATIONS_INT8 && splice::cpu::is_quantized(dtype);
  if (!cpu->reserve(cpu->kernels->linear_scratch(args))) return SPLICE_CPU_NO_MEMORY;
  splice::cpu::QuantizeArgs rows{nullptr, x, x_stride, k};
  if (int8) {
    const auto blocks = static_cast<size_t>(m * k / splice::cpu::INT8_DEPTH);
    if (!cpu->quantized.reserve(blocks * sizeof(splice::cpu::Int8Block))) return SPLICE_CPU_NO_MEMORY;
    rows.out = cpu->quantized.as<splice::cpu::Int8Block>();
    args.x8 = rows.out;
  }
  cpu->run([&](Team& team) {
    if (int8) team.share(m, splice::cpu::ROW_GRAIN, [&](int64_t first, int64_t last) { cpu->kernels->quantize(rows, first, last); });
    float* scratch = cpu->scratch_of(team);
    const int64_t items = splice::cpu::linear_items(args);
    team.share(items, splice::cpu::grain_of(items, team.threads(), 4),
               [&](int64_t first, int64_t last) { cpu->kernels->linear(args, first, last, scratch); });
  });
  return SPLICE_CPU_OK;
}

int splice_cpu_rms_norm(splice_cpu* cpu, float* y, const float* x, int64_t x_stride, float* residual, const void* weight,
                        int weight_dtype, float eps, int64_t rows, int64_t size) {
  const std::lock_guard lock(cpu->mutex);
  const splice::cpu::NormArgs args{y, nullptr, x, x_stride, residual, weight, weight_dtype, eps, size};
  cpu->run([&](Team& team) {
    team.share(rows, splice::cpu::ROW_GRAIN, [&](int64_t first, int64_t last) { cpu->kernels->rms_norm(args, first, last); });
  });
  return SPLICE_CPU_OK;
}

int splice_cpu_gated_mul(splice_cpu* cpu, float* y, const float* x, int64_t x_stride, int activation, int64_t rows,
                         int64_t size) {
  const std::lock_guard lock(cpu->mutex);
  const splice::cpu::GateArgs args{y, x, x_stride, activation, size};
  cpu->run([&](Team& team) {
    team.share(rows, splice::cpu::ROW_GRAIN, [&](int64_t first, int64_t last) { cpu->kernels->gated_mul(args, first, last); });
  });
  return SPLICE_CPU_OK;
}

int splice_cpu_rope_store(splice_cpu* cpu, float* out, const float* q, int64_t q_stride, const float* k, int64_t k_stride,
                          const float* v, int64_t v_stride, const float* cos_sin, int64_t rotary_dim,
                          const int64_t* positions, const int64_t* slots, int64_t tokens, int64_t q_heads,
                          splice_cpu_kv kv, int64_t layer) {
  const std::lock_guard lock(cpu->mutex);
  const splice::cpu::RopeArgs args{out,        q,         q_stride, k,       k_stride, v,    v_stride, cos_sin,
                                   rotary_dim, positions, slots,    q_heads, kv,       layer, nullptr, nullptr, 0.0f};
  cpu->run([&](Team& team) {
    team.share(tokens, splice::cpu::ROW_GRAIN, [&](int64_t first, int64_t last) { cpu->kernels->rope_store(args, first, last); });
  });
  return SPLICE_CPU_OK;
}

int splice_cpu_attention(splice_cpu* cpu, float* out, const float* q, int64_t q_stride, splice_cpu_kv kv, int64_t layer,
                         const int32_t* block_tables, int64_t table_stride, const int32_t* query_starts,
                         const int32_t* starts, int64_t sequences, int64_t q_heads, float scale, int64_t window,
                         float softcap, const float* sinks) {
  const std::lock_guard lock(cpu->mutex);
  const AttentionArgs args{out,          nullptr,      q,      q_stride,  kv,      layer, block_tables,
                           table_stride, query_starts, starts, sequences, q_heads, scale, window, softcap, sinks};
  if (!cpu->reserve(cpu->kernels->attention_scratch(args))) return SPLICE_CPU_NO_MEMORY;
  cpu->run([&](Team& team) { splice::cpu::team_attention(*cpu, team, args, [] {}); });
  return SPLICE_CPU_OK;
}

int splice_cpu_route(splice_cpu* cpu, int64_t* experts, float* weights, const float* logits, const splice_cpu_routing* routing,
                     int64_t rows) {
  const std::lock_guard lock(cpu->mutex);
  if (!cpu->reserve(cpu->kernels->route_scratch(*routing))) return SPLICE_CPU_NO_MEMORY;
  const splice::cpu::RouteArgs args{experts, weights, logits, routing};
  cpu->run([&](Team& team) {
    float* scratch = cpu->scratch_of(team);
    team.share(rows, splice::cpu::ROW_GRAIN,
               [&](int64_t first, int64_t last) { cpu->kernels->route(args, first, last, scratch); });
  });
  return SPLICE_CPU_OK;
}

int splice_cpu_latent_attention(splice_cpu* cpu, float* out, const float* q, splice_cpu_kv kv, int64_t layer,
                                const int32_t* block_tables, int64_t table_stride, const int32_t* query_starts,
                                const int32_t* starts, int64_t sequences, int64_t q_heads, int64_t rank, float scale) {
  const std::lock_guard lock(cpu->mutex);
  const splice::cpu::LatentArgs args{out, q, kv, layer, block_tables, table_stride, query_starts, starts, sequences, q_heads, rank, scale};
  if (!cpu->reserve(cpu->kernels->latent_scratch(args))) return SPLICE_CPU_NO_MEMORY;
  cpu->run([&](Team& team) { splice::cpu::team_latent_attention(*cpu, team, args, [] {}); });
  return SPLICE_CPU_OK;
}
