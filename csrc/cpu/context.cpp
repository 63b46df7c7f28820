// The context behind the C ABI: picks an instruction set, cuts work into fixed shares and hands them to the pool.
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "splice_cpu.h"

using splice::cpu::AttentionArgs;
using splice::cpu::Kernels;
using splice::cpu::LinearArgs;
using splice::cpu::Pool;

namespace {

struct FreeAligned {
  void operator()(float* p) const { std::free(p); }
};

// One thread's scratch, grown on demand and kept.
struct Scratch {
  std::unique_ptr<float, FreeAligned> data;
  size_t floats = 0;

  bool reserve(size_t wanted) {
    if (wanted <= floats) return true;
    const size_t bytes = (wanted * sizeof(float) + 63) / 64 * 64;
    data.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    floats = data ? wanted : 0;
    return data != nullptr;
  }
};

const Kernels* kernels_for(int isa) {
#if defined(__x86_64__)
  if (isa == SPLICE_CPU_ISA_AVX512) return &splice::cpu::avx512_kernels();
  if (isa == SPLICE_CPU_ISA_AVX2) return &splice::cpu::avx2_kernels();
#endif
  return &splice::cpu::portable_kernels();
}

}  // namespace

struct splice_cpu {
  int isa;
  const Kernels* kernels;
  std::mutex mutex;
  std::unique_ptr<Pool> pool;
  std::vector<Scratch> scratch;

  bool reserve(size_t floats) {
    scratch.resize(static_cast<size_t>(pool->num_threads()));
    for (auto& one : scratch)
      if (!one.reserve(floats)) return false;
    return true;
  }

  // Contiguous shares of [0, count), the same for the same count and number of threads.
  template <class Share>
  void share(int64_t count, const Share& body) {
    struct Context {
      const Share* body;
      int64_t count;
    } context{&body, count};
    pool->run(
        [](void* raw, int thread, int threads) {
          const auto& c = *static_cast<Context*>(raw);
          const int64_t first = c.count * thread / threads, last = c.count * (thread + 1) / threads;
          if (first < last) (*c.body)(thread, first, last);
        },
        &context);
  }
};

int splice_cpu_isa_supported(int isa) {
  if (isa == SPLICE_CPU_ISA_PORTABLE) return 1;
#if defined(__x86_64__)
  if (isa == SPLICE_CPU_ISA_AVX2) 
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == SPLICE_CPU_ISA_AVX512) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
#endif
  return 0;
}

int splice_cpu_create(int isa, int num_threads, splice_cpu** out) {
  if (isa == SPLICE_CPU_ISA_BEST) {
    isa = SPLICE_CPU_ISA_AVX512;
    while (!splice_cpu_isa_supported(isa)) --isa;
  }
  if (!splice_cpu_isa_supported(isa)) return SPLICE_CPU_UNSUPPORTED;
  try {
    auto cpu = std::make_unique<splice_cpu>();
    cpu->isa = isa;
    cpu->kernels = kernels_for(isa);
    cpu->pool = std::make_unique<Pool>(num_threads);
    *out = cpu.release();
  } catch (const std::exception&) {
    return SPLICE_CPU_NO_MEMORY;
  }
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
                      int dtype, const float* bias, int64_t m, int64_t n, int64_t k) {
  if (m == 0 || n == 0) return SPLICE_CPU_OK;
  const std::lock_guard lock(cpu->mutex);
  if (!cpu->reserve(cpu->kernels->linear_scratch())) return SPLICE_CPU_NO_MEMORY;
  const LinearArgs args{y, y_stride, x, x_stride, packed, dtype, bias, m, n, k};
  cpu->share((n + SPLICE_CPU_PANEL - 1) / SPLICE_CPU_PANEL, [&](int thread, int64_t first, int64_t last) {
    cpu->kernels->linear(args, first, last, cpu->scratch[static_cast<size_t>(thread)].data.get());
  });
  return SPLICE_CPU_OK;
}

int splice_cpu_rms_norm(splice_cpu* cpu, float* y, const float* x, int64_t x_stride, float* residual, const void* weight,
                        int weight_dtype, float eps, int64_t rows, int64_t size) {
  const std::lock_guard lock(cpu->mutex);
  const splice::cpu::NormArgs args{y, x, x_stride, residual, weight, weight_dtype, eps, size};
  cpu->share(rows, [&](int, int64_t first, int64_t last) { cpu->kernels->rms_norm(args, first, last); });
  return SPLICE_CPU_OK;
}

int splice_cpu_silu_mul(splice_cpu* cpu, float* y, const float* x, int64_t x_stride, int64_t rows, int64_t size) {
  const std::lock_guard lock(cpu->mutex);
  const splice::cpu::SiluArgs args{y, x, x_stride, size};
  cpu->share(rows, [&](int, int64_t first, int64_t last) { cpu->kernels->silu_mul(args, first, last); });
  return SPLICE_CPU_OK;
}

int splice_cpu_rope_store(splice_cpu* cpu, float* out, const float* q, int64_t q_stride, const float* k, int64_t k_stride,
                          const float* v, int64_t v_stride, const float* cos_sin, int64_t rotary_dim,
                          const int64_t* positions, const int64_t* slots, int64_t tokens, int64_t q_heads,
                          splice_cpu_kv kv, int64_t layer) {
  const std::lock_guard lock(cpu->mutex);
  const splice::cpu::RopeArgs args{out,        q,         q_stride, k,       k_stride, v,    v_stride, cos_sin,
                                   rotary_dim, positions, slots,    q_heads, kv,       layer};
  cpu->share(tokens, [&](int, int64_t first, int64_t last) { cpu->kernels->rope_store(args, first, last); });
  return SPLICE_CPU_OK;
}

int splice_cpu_attention(splice_cpu* cpu, float* out, const float* q, int64_t q_stride, splice_cpu_kv kv, int64_t layer,
                         const int32_t* block_tables, int64_t table_stride, const int32_t* query_starts,
                         const int32_t* starts, int64_t sequences, int64_t q_heads, float scale) {
  const std::lock_guard lock(cpu->mutex);
  const AttentionArgs args{out,          q,      q_stride,  kv,      layer, block_tables, table_stride,
                           query_starts, starts, sequences, q_heads, scale};
  if (!cpu->reserve(cpu->kernels->attention_scratch(args))) return SPLICE_CPU_NO_MEMORY;
  constexpr int64_t TILE = splice::cpu::ATTENTION_QUERY_TILE;
  // Late tiles see more of the past than early ones: dealing items out in turn keeps the threads level.
  const auto deal = [&](int thread, int threads) {
    int64_t item = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t queries = query_starts[s + 1] - query_starts[s];
      for (int64_t first = 0; first < queries; first += TILE)
        for (int64_t head = 0; head < kv.kv_heads; ++head, ++item)
          if (item % threads == thread)
            cpu->kernels->attention(args, s, head, first, first + TILE < queries ? first + TILE : queries,
                                    cpu->scratch[static_cast<size_t>(thread)].data.get());
    }
  };
  const int64_t threads = cpu->pool->num_threads();
  cpu->share(threads, [&](int thread, int64_t, int64_t) { deal(thread, static_cast<int>(threads)); });
  return SPLICE_CPU_OK;
}
