// y = (x·scales)·(W·scales)ᵀ (+ bias) of e4m3 codes on Hopper with scales of blocks, 1×128 of x and 128×128 of W (DeepSeek-V3, arXiv
// 2412.19437, section 3.3.2), through CUTLASS 3.x: wgmma fed by TMA. Compiled for sm_90a; not yet run on a GPU.
//
// Moves m·k + n·k bytes, 4 more for 128 codes of x, and y once, does 2·m·n·k operations on the matrix units and 2·m·n·k/128 beside
// them: bound by W's bytes up to some 200 rows, by the matrix units above, which wait while their sums are scaled. One chain over
// k per output in ascending order, never split: wgmma sums a block of 128 from zero, sum = fused(that, x scale · w scale, sum).
//
// Tile 0 is for few rows: the roles are exchanged, as in gemm_sm90.cu. A tile must hold whole blocks of W, 128 rows of it: with
// n = 4096 that is 32 tiles for 132 multiprocessors, which does not reach the bandwidth of the memory.
#include "gemm_fp8.h"
#include "gemm_sm90.h"

namespace splice::cuda {
namespace {

using Bf16 = cutlass::bfloat16_t;
using E4m3 = cutlass::float_e4m3_t;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;

constexpr int BLOCK = 128;
constexpr auto ALONG_K = cute::GMMA::Major::K, ALONG_ROWS = cute::GMMA::Major::MN;

// A [M, K] and B [N, K]; D is [M, N], row major or, exchanged, column major.
template <bool exchanged, class Tile, class Cluster>
struct Product {
  using Layout = cute::conditional_t<exchanged, ColumnMajor, RowMajor>;
  using Scales = cute::conditional_t<exchanged, cutlass::detail::Sm90BlockwiseScaleConfig<BLOCK, 1, BLOCK, ALONG_K, ALONG_ROWS>,
                                     cutlass::detail::Sm90BlockwiseScaleConfig<1, BLOCK, BLOCK, ALONG_ROWS, ALONG_K>>;
  using ScalesA = decltype(Scales::deduce_layoutSFA());
  using ScalesB = decltype(Scales::deduce_layoutSFB());
  using Fusion = cute::conditional_t<exchanged, cutlass::epilogue::fusion::LinCombPerRowBias<Bf16, float, Bf16>,
                                     cutlass::epilogue::fusion::LinCombPerColBias<Bf16, float, Bf16>>;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
      Layout, 8, Bf16, Layout, 8, cutlass::epilogue::TmaWarpSpecializedCooperative, Fusion>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, E4m3, cute::tuple<RowMajor, ScalesA>, 16, E4m3,
      cute::tuple<ColumnMajor, ScalesB>, 16, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename CollectiveEpilogue::SharedStorage))>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8Blockwise>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop, CollectiveEpilogue,
                                                      cutlass::gemm::PersistentScheduler>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static int multiply(const splice_cuda_gemm_fp8& args, cudaStream_t stream) {
    const int m = static_cast<int>(exchanged ? args.n : args.m), n = static_cast<int>(exchanged ? args.m : args.n);
    const int k = static_cast<int>(args.k), scale_rows = static_cast<int>((args.m + 3) / 4 * 4);
    const auto *x = static_cast<const E4m3*>(args.x), *w = static_cast<const E4m3*>(args.w);
    typename Kernel::StrideA a;
    typename Kernel::StrideB b;
    typename Kernel::StrideD d;
    cute::get<0>(a) = exchanged ? args.w_stride : args.x_stride;
    cute::get<0>(b) = exchanged ? args.x_stride : args.w_stride;
    cute::get<exchanged ? 1 : 0>(d) = args.y_stride;
    // Scales of x are read by fours: those beyond m, which their stride has room for, scale nothing that is kept.
    const auto shape = cute::make_shape(exchanged ? m : scale_rows, exchanged ? scale_rows : n, k, 1);
    auto scales_a = Scales::tile_atom_to_shape_SFA(shape);
    auto scales_b = Scales::tile_atom_to_shape_SFB(shape);
    if constexpr (exchanged)
      set_stride(scales_b, args.x_scale_stride);
    else
      set_stride(scales_a, args.x_scale_stride);
    typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {m, n, k, 1},
        {exchanged ? w : x, a, exchanged ? x : w, b, exchanged ? args.w_scales : args.x_scales, scales_a,
         exchanged ? args.x_scales : args.w_scales, scales_b},
        {{}, nullptr, {}, static_cast<Bf16*>(args.y), d},
        {}};
    arguments.epilogue.thread.alpha = 1.0f;
    arguments.epilogue.thread.beta = 0.0f;
    arguments.epilogue.thread.bias_ptr = static_cast<const Bf16*>(args.bias);
    return start_product<Gemm>("gemm_fp8_blocks_sm90", arguments, stream);
  }

 private:
  // From one block of k to the next.
  template <class Layout>
  static void set_stride(Layout& layout, int64_t stride) {
    auto strides = layout.stride();
    cute::get<1>(cute::get<1>(strides)) = static_cast<int>(stride);
    layout = Layout(layout.shape(), strides);
  }
};

using cute::_1, cute::_2, cute::_64, cute::_128;
using Few = Product<true, cute::Shape<_128, _64, _128>, cute::Shape<_1, _1, _1>>;
using Many = Product<false, cute::Shape<_128, _128, _128>, cute::Shape<_1, _2, _1>>;

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_gemm_fp8_blocks_sm90(const splice_cuda_gemm_fp8* args, void* stream) {
  using namespace splice::cuda;
  const int code = check_gemm_fp8("gemm_fp8_blocks_sm90", *args, 2);
  if (code != SPLICE_CUDA_OK || args->m == 0) return code;
  if (args->x_scaling != SPLICE_CUDA_BLOCKS || args->w_scaling != SPLICE_CUDA_BLOCKS)
    return fail(SPLICE_CUDA_INVALID, "gemm_fp8_blocks_sm90: scalings %d and %d, expected blocks of both", args->x_scaling, args->w_scaling);
  if (args->x_scale_stride < args->m || args->x_scale_stride % 4 || !aligned(args->x_scales))
    return fail(SPLICE_CUDA_INVALID, "gemm_fp8_blocks_sm90: x_scale_stride %lld, expected a multiple of 4, at least m, and 16-byte alignment",
                static_cast<long long>(args->x_scale_stride));
  auto* on = static_cast<cudaStream_t>(stream);
  return args->tile == 0 ? Few::multiply(*args, on) : Many::multiply(*args, on);
}
