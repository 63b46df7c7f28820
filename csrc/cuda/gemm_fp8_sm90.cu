// y = (x·scale)·(W·scale)ᵀ (+ bias) of e4m3 codes on Hopper, scales per tensor or per row, through CUTLASS 3.x: wgmma fed by TMA.
// Compiled for sm_90a; not yet run on a GPU.
//
// Moves m·k + n·k bytes and y once, does 2·m·n·k operations at twice bfloat16's rate: bound by W's bytes up to some 200 rows, by the
// matrix units above. One chain over k per output in ascending order, never split: wgmma sums 128 of k from zero, these sums are
// added in float32; then y = round(fused(w scale, x scale · sum, bias)).
//
// The matrix units keep some 14 bits of a sum of FP8 products (DeepSeek-V3 technical report, arXiv 2412.19437, section 3.3.2), which is
// why a sum of 128 leaves them. It takes a second set of accumulators, so tile 1 is 128×128. Tiles 2, of 128×256, and 3, of 128×128,
// leave all sums in the matrix units: torch._scaled_mm's use_fast_accum. Tile 3 is for grids that tile 2 would fill badly, tile 0 for
// few rows: the roles are exchanged, as in gemm_sm90.cu.
#include "gemm_fp8.h"
#include "gemm_sm90.h"

namespace splice::cuda {
namespace {

using Bf16 = cutlass::bfloat16_t;
using E4m3 = cutlass::float_e4m3_t;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
namespace fusion = cutlass::epilogue::fusion;
using cute::_0, cute::_1;

constexpr auto NEAREST = cutlass::FloatRoundStyle::round_to_nearest;

// One value for each of D's rows, or one for all of them, as the stride says when it is started; the same of D's columns.
template <class Tile, class Element, class Along = bool>
using OfRow = fusion::Sm90ColBroadcast<0, Tile, Element, float, cute::Stride<Along, _0, int64_t>>;
template <class Tile, class Element, class Along = bool>
using OfColumn = fusion::Sm90RowBroadcast<0, Tile, Element, float, cute::Stride<_0, Along, int64_t>>;

// A [M, K] and B [N, K]; D is [M, N], row major or, exchanged, column major.
template <bool exchanged, class Tile, class Cluster, class Mainloop, class Epilogue>
struct Product {
  using Layout = cute::conditional_t<exchanged, ColumnMajor, RowMajor>;
  using XScale = cute::conditional_t<exchanged, OfColumn<Tile, float>, OfRow<Tile, float>>;
  using WScale = cute::conditional_t<exchanged, OfRow<Tile, float>, OfColumn<Tile, float>>;
  using Bias = cute::conditional_t<exchanged, OfRow<Tile, Bf16, _1>, OfColumn<Tile, Bf16, _1>>;
  using Scaled = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::multiplies, float, float, NEAREST>, XScale, fusion::Sm90AccFetch>;
  using Fusion = fusion::Sm90EVT<fusion::Sm90Compute<cutlass::homogeneous_multiply_add, Bf16, float, NEAREST>, WScale, Scaled, Bias>;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
      Layout, 8, Bf16, Layout, 8, Epilogue, Fusion>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, E4m3, RowMajor, 16, E4m3, ColumnMajor, 16, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename CollectiveEpilogue::SharedStorage))>,
      Mainloop>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, CollectiveMainloop, CollectiveEpilogue,
                                                      cutlass::gemm::PersistentScheduler>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static int multiply(const splice_cuda_gemm_fp8& args, cudaStream_t stream) {
    const int m = static_cast<int>(exchanged ? args.n : args.m), n = static_cast<int>(exchanged ? args.m : args.n);
    const auto *x = static_cast<const E4m3*>(args.x), *w = static_cast<const E4m3*>(args.w);
    typename Kernel::StrideA a;
    typename Kernel::StrideB b;
    typename Kernel::StrideD d;
    cute::get<0>(a) = exchanged ? args.w_stride : args.x_stride;
    cute::get<0>(b) = exchanged ? args.x_stride : args.w_stride;
    cute::get<exchanged ? 1 : 0>(d) = args.y_stride;
    typename XScale::Arguments x_scale{args.x_scales, 0.0f, {}};
    typename WScale::Arguments w_scale{args.w_scales, 0.0f, {}};
    set_along(x_scale, args.x_scaling == SPLICE_CUDA_ROWS);
    set_along(w_scale, args.w_scaling == SPLICE_CUDA_ROWS);
    typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {m, n, static_cast<int>(args.k), 1},
        {exchanged ? w : x, a, exchanged ? x : w, b},
        {{w_scale, {x_scale, {}, {}}, {static_cast<const Bf16*>(args.bias), Bf16(0), {}}, {}}, nullptr, {}, static_cast<Bf16*>(args.y), d},
        {}};
    return start_product<Gemm>("gemm_fp8_sm90", arguments, stream);
  }

 private:
  template <class Arguments>
  static void set_along(Arguments& scale, bool one_each) {
    if constexpr (requires_row<Arguments>(0))
      cute::get<1>(scale.dRow) = one_each;
    else
      cute::get<0>(scale.dCol) = one_each;
  }
  template <class Arguments>
  static constexpr auto requires_row(int) -> decltype(Arguments{}.dRow, true) {
    return true;
  }
  template <class Arguments>
  static constexpr bool requires_row(long) {
    return false;
  }
};

using cute::_2, cute::_64, cute::_128, cute::_256;
using Single = cutlass::epilogue::TmaWarpSpecialized;
using Shared = cutlass::epilogue::TmaWarpSpecializedCooperative;

using Few = Product<true, cute::Shape<_64, _64, _128>, cute::Shape<_1, _1, _1>, cutlass::gemm::KernelTmaWarpSpecializedPingpong, Single>;
using Many = Product<false, cute::Shape<_128, _128, _128>, cute::Shape<_1, _2, _1>, cutlass::gemm::KernelTmaWarpSpecializedCooperative, Shared>;
using Fast = Product<false, cute::Shape<_128, _256, _128>, cute::Shape<_2, _1, _1>,
                     cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum, Shared>;
using FastBetween = Product<false, cute::Shape<_128, _128, _128>, cute::Shape<_1, _2, _1>,
                            cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum, Single>;

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_gemm_fp8_sm90(const splice_cuda_gemm_fp8* args, void* stream) {
  using namespace splice::cuda;
  const int code = check_gemm_fp8("gemm_fp8_sm90", *args, 4);
  if (code != SPLICE_CUDA_OK || args->m == 0) return code;
  if ((args->x_scaling | args->w_scaling) & ~SPLICE_CUDA_ROWS)
    return fail(SPLICE_CUDA_INVALID, "gemm_fp8_sm90: scales of blocks, expected one a tensor or one a row");
  auto* on = static_cast<cudaStream_t>(stream);
  switch (args->tile) {
    case 0: return Few::multiply(*args, on);
    case 1: return Many::multiply(*args, on);
    case 2: return Fast::multiply(*args, on);
    default: return FastBetween::multiply(*args, on);
  }
}
