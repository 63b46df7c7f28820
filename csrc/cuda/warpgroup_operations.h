// The operations of warpgroup.h as Hopper has them. All threads of a warpgroup take part in products together.
#pragma once

namespace splice::cuda {

SPLICE_DEVICE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
SPLICE_DEVICE void open_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SPLICE_DEVICE void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
SPLICE_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Keeps the compiler from moving uses of accumulators over what stands here: it knows of no asynchronous writes. Belongs before
// open_products and behind wait_products.
template <int fragments>
SPLICE_DEVICE void hold(float (&acc)[fragments][4]) {
  SPLICE_UNROLL
  for (int i = 0; i < 4 * fragments; ++i) asm volatile("" : "+f"(acc[i / 4][i % 4])::"memory");
}

template <int columns>
struct GroupProduct;

// Numbers are those of operands: accumulators come first.
#define SPLICE_TEN(tens) "%" #tens "0,%" #tens "1,%" #tens "2,%" #tens "3,%" #tens "4,%" #tens "5,%" #tens "6,%" #tens "7,%" #tens "8,%" #tens "9"
#define SPLICE_FRAGMENT(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SPLICE_FRAGMENTS(i) SPLICE_FRAGMENT(i), SPLICE_FRAGMENT(i + 1), SPLICE_FRAGMENT(i + 2), SPLICE_FRAGMENT(i + 3)
#define SPLICE_GROUP_PRODUCT(columns, accumulators, i0, i1, i2, i3, i4, i5, i6, ...)                                                       \
  template <>                                                                                                                             \
  struct GroupProduct<columns> {                                                                                                          \
    template <int by_columns>                                                                                                             \
    SPLICE_DEVICE static void run(float (&c)[columns / 8][4], const uint32_t (&a)[4], uint64_t b, int keep) {                              \
      asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #i5 ", 0;\n"                                                                 \
                   "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" accumulators "}, {%" #i0 ",%" #i1 ",%" #i2 ",%" #i3   \
                   "}, %" #i4 ", keep, 1, 1, %" #i6 ";\n}\n"                                                                               \
                   : __VA_ARGS__                                                                                                          \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(by_columns));                                      \
    }                                                                                                                                     \
    template <int by_columns>                                                                                                             \
    SPLICE_DEVICE static void run(float (&c)[columns / 8][4], uint64_t a, uint64_t b, int keep) {                                          \
      asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #i2 ", 0;\n"                                                                 \
                   "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" accumulators "}, %" #i0 ", %" #i1                     \
                   ", keep, 1, 1, 0, %" #i3 ";\n}\n"                                                                                       \
                   : __VA_ARGS__                                                                                                          \
                   : "l"(a), "l"(b), "r"(keep), "n"(by_columns));                                                                          \
    }                                                                                                                                     \
  };

SPLICE_GROUP_PRODUCT(64, SPLICE_TEN() "," SPLICE_TEN(1) "," SPLICE_TEN(2) ",%30,%31", 32, 33, 34, 35, 36, 37, 38, SPLICE_FRAGMENTS(0),
                     SPLICE_FRAGMENTS(4))
SPLICE_GROUP_PRODUCT(80, SPLICE_TEN() "," SPLICE_TEN(1) "," SPLICE_TEN(2) "," SPLICE_TEN(3), 40, 41, 42, 43, 44, 45, 46, SPLICE_FRAGMENTS(0),
                     SPLICE_FRAGMENTS(4), SPLICE_FRAGMENT(8), SPLICE_FRAGMENT(9))
SPLICE_GROUP_PRODUCT(96, SPLICE_TEN() "," SPLICE_TEN(1) "," SPLICE_TEN(2) "," SPLICE_TEN(3) ",%40,%41,%42,%43,%44,%45,%46,%47", 48, 49, 50, 51,
                     52, 53, 54, SPLICE_FRAGMENTS(0), SPLICE_FRAGMENTS(4), SPLICE_FRAGMENTS(8))
SPLICE_GROUP_PRODUCT(128, SPLICE_TEN() "," SPLICE_TEN(1) "," SPLICE_TEN(2) "," SPLICE_TEN(3) "," SPLICE_TEN(4) "," SPLICE_TEN(5) ",%60,%61,%62,%63",
                     64, 65, 66, 67, 68, 69, 70, SPLICE_FRAGMENTS(0), SPLICE_FRAGMENTS(4), SPLICE_FRAGMENTS(8), SPLICE_FRAGMENTS(12))
SPLICE_GROUP_PRODUCT(256,
                     SPLICE_TEN() "," SPLICE_TEN(1) "," SPLICE_TEN(2) "," SPLICE_TEN(3) "," SPLICE_TEN(4) "," SPLICE_TEN(5) "," SPLICE_TEN(
                         6) "," SPLICE_TEN(7) "," SPLICE_TEN(8) "," SPLICE_TEN(9) "," SPLICE_TEN(10) "," SPLICE_TEN(11) ",%120,%121,%122,%123,%124,"
                                                                                                                        "%125,%126,%127",
                     128, 129, 130, 131, 132, 133, 134, SPLICE_FRAGMENTS(0), SPLICE_FRAGMENTS(4), SPLICE_FRAGMENTS(8), SPLICE_FRAGMENTS(12),
                     SPLICE_FRAGMENTS(16), SPLICE_FRAGMENTS(20), SPLICE_FRAGMENTS(24), SPLICE_FRAGMENTS(28))
#undef SPLICE_GROUP_PRODUCT
#undef SPLICE_FRAGMENTS
#undef SPLICE_FRAGMENT
#undef SPLICE_TEN

// acc = a·b, plus acc where `keep`: 64 rows of the warpgroup, 16 of its warp w from 16·w on, and so many columns, over 16 of k. Fragment
// j of a thread's accumulators is that of multiply_fragments for columns from 8·j on; `a` in registers is that one's, too.
// `by_columns`: rows of b's panels are k (columns_in), else its columns are (rows_in).
template <int columns, bool by_columns = false>
SPLICE_DEVICE void multiply_group(float (&acc)[columns / 8][4], const uint32_t (&a)[4], uint64_t b, bool keep) {
  GroupProduct<columns>::template run<by_columns ? 1 : 0>(acc, a, b, keep ? 1 : 0);
}
// The same with `a` in shared memory (rows_in).
template <int columns, bool by_columns = false>
SPLICE_DEVICE void multiply_group(float (&acc)[columns / 8][4], uint64_t a, uint64_t b, bool keep) {
  GroupProduct<columns>::template run<by_columns ? 1 : 0>(acc, a, b, keep ? 1 : 0);
}

// Four 8×8 matrices of 16-bit elements to shared memory, from registers as load_matrices leaves them. Products see it once published.
SPLICE_DEVICE void store_matrices(void* row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// A barrier in shared memory that `count` threads arrive at, again and again. Whoever waits names the parity of the round it waits for:
// 0 for the first. A round's end makes seen what its threads did before they arrived.
struct alignas(8) SharedBarrier {
  uint64_t state;

  // By one thread, before a barrier of the block.
  SPLICE_DEVICE void begin(int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(count) : "memory"); }
  SPLICE_DEVICE void arrive() { asm volatile("{\n.reg .b64 token;\nmbarrier.arrive.shared::cta.b64 token, [%0];\n}\n" ::"r"(shared_address(this)) : "memory"); }
  // By all lanes of a warp, which count as one, once all have come.
  SPLICE_DEVICE void arrive_warp() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive();
  }
  SPLICE_DEVICE void wait(int parity) {
    uint32_t done = 0;
    while (!done)
      asm volatile("{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.b32 %0, 1, 0, done;\n}\n"
                   : "=r"(done)
                   : "r"(shared_address(this)), "r"(parity)
                   : "memory");
  }
};

// Barrier 1…15 of so many of the block's threads, whole warps; `arrive_at` counts and does not wait.
SPLICE_DEVICE void barrier_of(int barrier, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }
SPLICE_DEVICE void arrive_at(int barrier, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }

// Of each thread of the warpgroup from here on: a multiple of 8. Only where __launch_bounds__ says one block a multiprocessor.
template <int count>
SPLICE_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
SPLICE_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

}  // namespace splice::cuda
