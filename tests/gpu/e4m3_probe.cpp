// e4m3.h under a plain C++ compiler, over arrays: for test_cuda_e4m3.py.
#include "e4m3.h"

using namespace splice::cuda;

extern "C" void to_codes(const float* values, uint8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) codes[i] = portable_to_e4m3(values[i]);
}

extern "C" void from_codes(const uint8_t* codes, float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = portable_from_e4m3(codes[i]);
}

extern "C" void to_bf16(const uint32_t* codes, uint32_t* pairs, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t two[2];
    e4m3_to_bf16(codes[i], two);
    pairs[2 * i] = two[0];
    pairs[2 * i + 1] = two[1];
  }
}
