// CPUID says what the processor has, XCR0 which registers the system saves; AMX tiles are besides granted process by process.
#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "splice_cpu.h"

namespace splice::cpu {

#if defined(__x86_64__)

namespace {

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Leaf(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// CPUID leaf 7.1, EAX bit 4: gcc 12 has no name for it.
bool has_avx_vnni() { return has_avx2() && (Leaf(7, 1).a >> 4 & 1u); }

bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

// Register state the system saves, by number: tile configuration is 17, tile data 18. CPUID leaf 1, ECX bit 27: it may be asked.
bool saves_tiles() {
  constexpr unsigned TILES = 1u << 17 | 1u << 18;
  if (!(Leaf(1, 0).c >> 27 & 1u)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & TILES) == TILES;
}

// Linux keeps the 8 KiB of tile data away from a process until it asks; without the right the first tile instruction kills it.
bool granted_tiles() {
#if defined(__linux__)
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM of <asm/prctl.h>, which older headers lack
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
#else
  return false;
#endif
}

// CPUID leaf 7.0, EDX: AMX-BF16 is bit 22, AMX-TILE bit 24, AMX-INT8 bit 25.
bool has_amx() {
  constexpr unsigned AMX = 1u << 22 | 1u << 24 | 1u << 25;
  return has_avx512_vnni() && (Leaf(7, 0).d & AMX) == AMX && saves_tiles() && granted_tiles();
}

}  // namespace

bool machine_has(int isa) {
  switch (isa) {
    case SPLICE_CPU_ISA_PORTABLE: return true;
    case SPLICE_CPU_ISA_AVX2: return has_avx2();
    case SPLICE_CPU_ISA_AVX_VNNI: return has_avx_vnni();
    case SPLICE_CPU_ISA_AVX512: return has_avx512();
    case SPLICE_CPU_ISA_AVX512_VNNI: return has_avx512_vnni();
    case SPLICE_CPU_ISA_AMX: return has_amx();
    default: return false;
  }
}

#else

bool machine_has(int isa) { return isa == SPLICE_CPU_ISA_PORTABLE; }

#endif

}  // namespace splice::cpu
