// Quantised weights at load time and in embedding lookups; the product itself is in quant_linear.h.
#pragma once

#include <stdint.h>

namespace splice::cpu {

// Rows first..first+rows of a packed matrix from `rows` rows of file blocks; dst_dtype is src_dtype or SPLICE_CPU_F32.
void pack_quantized(void* dst, int dst_dtype, int64_t k, int64_t first, int64_t rows, const uint8_t* src, int src_dtype);
// out[k] = one row of a packed quantised matrix.
void quantized_row(const void* packed, int dtype, int64_t k, int64_t row, float* out);

}  // namespace splice::cpu
