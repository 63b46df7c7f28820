// y = x·Wᵀ (+ bias) in bfloat16 with float32 sums on Hopper, through CUTLASS 3.x: wgmma fed by TMA. Compiled for sm_90a; not yet run
// on a GPU.
//
// Moves 2·(m·k + n·k) bytes and y once, does 2·m·n·k operations: bound by W's bytes up to some 200 rows, by the matrix units above.
// One chain over k per output, in steps of 16 in ascending order; k is never split, and tiles differ in nothing but which
// outputs are computed side by side.
//
// Tile 0 is for few rows: the roles are exchanged, yᵀ = W·xᵀ, so that the 64 rows a wgmma must have are rows of W, and its 64 columns
// cost nothing a product bound by W's bytes would notice. Tiles 1 and 2 are for more: 1, of 128×256, reads least from shared memory
// and has its warpgroups share a tile; 2, of 128×128, has them take turns, one's sums leaving while the other multiplies, and is for
// grids that tiles of 128×256 would fill badly: 1024 rows of n = 6144 are 192 of those for 132 multiprocessors, or 384 of these, 73 %
// or 97 % of whole rounds. Multiprocessors go in pairs: with tile 1 two share rows of W, with tile 2 rows of x, so that 128 rows keep
// both at work. Results in float32, which only an output head wants, of few rows, come from tile 0 alone.
#include "gemm.h"
#include "gemm_sm90.h"

namespace splice::cuda {
namespace {

using Bf16 = cutlass::bfloat16_t;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;

// A [M, K] and B [N, K], both with contiguous k; D is [M, N], row major or, exchanged, column major. The bias runs along D's columns,
// exchanged along its rows.
template <class Out, bool exchanged, class Tile, class Cluster, class Mainloop, class Epilogue>
struct Product {
  using Layout = cute::conditional_t<exchanged, ColumnMajor, RowMajor>;
  static constexpr int alignment = 16 / sizeof(Out);
  using Fusion = cute::conditional_t<exchanged, cutlass::epilogue::fusion::LinCombPerRowBias<Out, float, Bf16>,
                                     cutlass::epilogue::fusion::LinCombPerColBias<Out, float, Bf16>>;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
      Layout, alignment, Out, Layout, alignment, Epilogue, Fusion>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Bf16, RowMajor, 8, Bf16, ColumnMajor, 8, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename CollectiveEpilogue::SharedStorage))>,
      Mainloop>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop, CollectiveEpilogue,
                                                      cutlass::gemm::PersistentScheduler>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static int multiply(const splice_cuda_gemm& args, cudaStream_t stream) {
    const int m = static_cast<int>(exchanged ? args.n : args.m), n = static_cast<int>(exchanged ? args.m : args.n);
    const auto *x = static_cast<const Bf16*>(args.x), *w = static_cast<const Bf16*>(args.w);
    typename Kernel::StrideA a;
    typename Kernel::StrideB b;
    typename Kernel::StrideD d;
    cute::get<0>(a) = exchanged ? args.w_stride : args.x_stride;
    cute::get<0>(b) = exchanged ? args.x_stride : args.w_stride;
    cute::get<exchanged ? 1 : 0>(d) = args.y_stride;
    typename Gemm::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm,
                                       {m, n, static_cast<int>(args.k), 1},
                                       {exchanged ? w : x, a, exchanged ? x : w, b},
                                       {{}, nullptr, {}, static_cast<Out*>(args.y), d},
                                       {}};
    arguments.epilogue.thread.alpha = 1.0f;
    arguments.epilogue.thread.beta = 0.0f;
    arguments.epilogue.thread.bias_ptr = static_cast<const Bf16*>(args.bias);
    return start_product<Gemm>("gemm_sm90", arguments, stream);
  }
};

using cute::_1, cute::_2, cute::_64, cute::_128, cute::_256;
using Pingpong = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
using Cooperative = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
using Single = cutlass::epilogue::TmaWarpSpecialized;
using Shared = cutlass::epilogue::TmaWarpSpecializedCooperative;

template <class Out>
using Few = Product<Out, true, cute::Shape<_64, _64, _128>, cute::Shape<_1, _1, _1>, Pingpong, Single>;
using Many = Product<Bf16, false, cute::Shape<_128, _256, _64>, cute::Shape<_2, _1, _1>, Cooperative, Shared>;
using Between = Product<Bf16, false, cute::Shape<_128, _128, _64>, cute::Shape<_1, _2, _1>, Pingpong, Single>;

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_gemm_sm90(const splice_cuda_gemm* args, void* stream) {
  using namespace splice::cuda;
  const int code = check_gemm("gemm_sm90", *args, 3);
  if (code != SPLICE_CUDA_OK || args->m == 0) return code;
  auto* on = static_cast<cudaStream_t>(stream);
  if (args->tile == 0) return args->y_is_float32 ? Few<float>::multiply(*args, on) : Few<Bf16>::multiply(*args, on);
  if (args->y_is_float32) return fail(SPLICE_CUDA_UNSUPPORTED, "gemm_sm90: float32 results come from tile 0");
  return args->tile == 1 ? Many::multiply(*args, on) : Between::multiply(*args, on);
}
