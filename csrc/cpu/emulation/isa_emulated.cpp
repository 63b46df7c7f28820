// For tests: an AVX2 machine has everything, since what it lacks is emulated.
#include "isa.h"
#include "splice_cpu.h"

namespace splice::cpu {

bool machine_has(int isa) {
  if (isa == SPLICE_CPU_ISA_PORTABLE) return true;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace splice::cpu
