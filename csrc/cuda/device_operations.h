// The operations of platform.h as CUDA has them. Lanes of a warp always take part together.
#pragma once

namespace splice::cuda {

SPLICE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SPLICE_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SPLICE_DEVICE int64_t block_x() { return blockIdx.x; }
SPLICE_DEVICE int64_t block_y() { return blockIdx.y; }
SPLICE_DEVICE int64_t block_z() { return blockIdx.z; }
SPLICE_DEVICE int64_t grid_x() { return gridDim.x; }
SPLICE_DEVICE void barrier() { __syncthreads(); }

// The memory that the launch asked for, shared by the block's threads.
SPLICE_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char splice_shared[];
  return splice_shared;
}

template <class T>
SPLICE_DEVICE T from_lane_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
SPLICE_DEVICE T from_lane(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
SPLICE_DEVICE uint32_t lanes_where(bool condition) { return __ballot_sync(0xffffffffu, condition); }
SPLICE_DEVICE int lanes_in(uint32_t lanes) { return __popc(lanes); }

SPLICE_DEVICE void add_shared(unsigned long long* sum, unsigned long long value) { atomicAdd(sum, value); }
SPLICE_DEVICE void add_shared(unsigned int* sum, unsigned int value) { atomicAdd(sum, value); }

// Plain products and sums that the compiler may not fuse; `fused` is one rounding.
SPLICE_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
SPLICE_DEVICE double sum(double a, double b) { return __dadd_rn(a, b); }
SPLICE_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
SPLICE_DEVICE float sum(float a, float b) { return __fadd_rn(a, b); }
SPLICE_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// The other of a number and a NaN.
SPLICE_DEVICE float greater(float a, float b) { return fmaxf(a, b); }
SPLICE_DEVICE float quotient(float a, float b) { return __fdiv_rn(a, b); }
SPLICE_DEVICE float inverse_root(float x) { return __frcp_rn(__fsqrt_rn(x)); }
SPLICE_DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SPLICE_DEVICE float natural_power(float x) { return expf(x); }
SPLICE_DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
SPLICE_DEVICE uint64_t high_product(uint64_t a, uint64_t b) { return __umul64hi(a, b); }

SPLICE_DEVICE float from_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
SPLICE_DEVICE uint16_t to_bf16(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
// Two in a word, the first in its low half.
SPLICE_DEVICE uint32_t to_bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
// Of both halves of a word of two bfloat16, rounded.
SPLICE_DEVICE uint32_t bf16_pair_difference(uint32_t a, uint32_t b) {
  const __nv_bfloat162 pair = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&pair);
}
SPLICE_DEVICE float from_half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
SPLICE_DEVICE float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }
SPLICE_DEVICE uint32_t bits_of_float(float x) { return __float_as_uint(x); }
// (a & mask) ^ bits in one instruction, which two constants are too many for unless they are in registers.
SPLICE_DEVICE uint32_t masked_xor(uint32_t a, uint32_t mask, uint32_t bits) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(out) : "r"(a), "r"(mask), "r"(bits));
  return out;
}
// To the nearest integer, ties to even.
SPLICE_DEVICE int nearest_integer(float x) { return __float2int_rn(x); }

SPLICE_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Starts a copy of 16 bytes from global to shared memory; without `valid` the place is filled with zeros and nothing is read.
SPLICE_DEVICE void start_copy(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
// Closes a group of copies; `wait_copies<n>` waits for all groups but the latest n of this thread.
SPLICE_DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
SPLICE_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8×8 matrices of 16-bit elements from shared memory; lane i gives the address of row i % 8 of matrix i / 8. Register j holds,
// of matrix j, elements 2·(lane % 4) and the next of row lane / 4; transposed: of column lane / 4.
SPLICE_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
SPLICE_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c += a·b of 16×16 and 16×8 bfloat16, in float32; fragments as PTX ISA 9.7.14 lays out mma.m16n8k16.
SPLICE_DEVICE void multiply_fragments(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = start + a·b of 16×32 and 32×8 signed bytes, exact in int32; fragments as PTX ISA 9.7.14 lays out mma.m16n8k32.
SPLICE_DEVICE void multiply_fragments_int8(uint32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, uint32_t start) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(start));
}

}  // namespace splice::cuda
