// What instruction sets this machine lets us use.
#pragma once

namespace splice::cpu {

// Whether the processor has it and the system keeps its registers; an SPLICE_CPU_ISA_* of splice_cpu.h. Asks Linux, the first
// time, for the right to use AMX tiles where the processor has them: a right of the whole process.
bool machine_has(int isa);

}  // namespace splice::cpu
