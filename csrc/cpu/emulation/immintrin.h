// Stands before the compiler's <immintrin.h> where kernels are built for tests on a machine without AVX-512, VNNI or AMX: the
// intrinsics they use, in AVX2 and plain C++. Each does what Intel's Intrinsics Guide says of it, the tiles what the
// Instruction Set Reference says, faults included.
// An intrinsic that is missing here does not compile: always_inline fails for want of its instruction set.
#pragma once

#include_next <immintrin.h>

#include "avx512.h"
#include "tiles.h"
#include "vnni.h"
