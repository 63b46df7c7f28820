// Products of each expert's rows with its own weights in e4m3 codes on Hopper with scales of blocks, 1×128 of x and 128×128 of W
// (DeepSeek-V3, arXiv 2412.19437, section 3.3.2), through CUTLASS 3.x: wgmma fed by TMA, one group an expert (grouped_sm90.h).
// Compiled for sm_90a; not yet run on a GPU.
//
// Moves every chosen expert's n·k weights, a byte each, and its rows, with 4 bytes more for 128 codes of a row; does 2·n·k operations a
// row on the matrix units and 2·n·k/128 beside them: bound by the weights' bytes while experts have fewer rows than some hundred, by the
// matrix units above, which wait while their sums are scaled. Rows must stand in the order of experts.
//
// One chain over k per output in ascending order, never split, that of gemm_fp8_blocks_sm90.cu: wgmma sums a block of 128 from zero,
// sum = fused(that, x scale · w scale, sum).
//
// Tile 0 is for few rows an expert, which is decode: the roles are exchanged, yᵀ = W·xᵀ, so that 32 columns are enough for an expert's
// rows and its weights come in many small tiles. Both tiles hold one block of W's rows, 128. Tile 1 is for many.
#include "grouped_sm90.h"

namespace splice::cuda {
namespace {

constexpr const char* NAME = "grouped_fp8_blocks_sm90";
constexpr int BLOCK = 128;
constexpr int64_t MAX_STRIDE = (int64_t{1} << 31) - 1;

using E4m3 = cutlass::float_e4m3_t;
using grouped::Bf16, grouped::Cluster, grouped::RowMajor, grouped::ColumnMajor;

// CUTLASS's mainloop takes scales of a group for a matrix of the group's own rows; x's are columns of one for all rows, and what lies
// between two of its blocks along k is told by the first group's layout.
template <bool exchanged, class Base>
struct Mainloop : Base {
  template <class Shape>
  CUTLASS_DEVICE auto load_init(const Shape& shape, const typename Base::Params& params, const float* a_scales = nullptr,
                                const float* b_scales = nullptr) const {
    auto [a, b, of_a, of_b] = Base::load_init(shape, params, a_scales, b_scales);
    if constexpr (exchanged)
      return cute::make_tuple(a, b, of_a, apart(of_b, *params.layout_SFB));
    else
      return cute::make_tuple(a, b, apart(of_a, *params.layout_SFA), of_b);
  }
  template <class Inputs, class Shape>
  CUTLASS_DEVICE Inputs tensors_perform_update(const Inputs&, const typename Base::Params& params, const Shape& shape, int32_t group) const {
    return load_init(shape, params, params.ptr_SFA[group], params.ptr_SFB[group]);
  }

 private:
  template <class Scales, class Layout>
  CUTLASS_DEVICE static auto apart(const Scales& scales, const Layout& layout) {
    auto strides = scales.stride();
    cute::get<1>(cute::get<1>(strides)) = cute::get<1>(cute::get<1>(layout.stride()));
    return cute::make_tensor(scales.data(), cute::make_layout(scales.shape(), strides));
  }
};

// A [M, K] and B [N, K] of each group; D is [M, N], row major or, exchanged, column major.
template <bool exchanged, class Tile>
struct Product {
  static constexpr auto ALONG_K = cute::GMMA::Major::K, ALONG_ROWS = cute::GMMA::Major::MN;
  using Layout = cute::conditional_t<exchanged, ColumnMajor, RowMajor>;
  using Scales = cute::conditional_t<exchanged, cutlass::detail::Sm90BlockwiseScaleConfig<BLOCK, 1, BLOCK, ALONG_K, ALONG_ROWS>,
                                     cutlass::detail::Sm90BlockwiseScaleConfig<1, BLOCK, BLOCK, ALONG_ROWS, ALONG_K>>;
  using ScalesA = decltype(Scales::deduce_layoutSFA());
  using ScalesB = decltype(Scales::deduce_layoutSFB());
  using XScales = cute::conditional_t<exchanged, ScalesB, ScalesA>;
  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float, void,
      Layout*, 8, Bf16, Layout*, 8, cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative,
      cutlass::epilogue::fusion::LinearCombination<Bf16, float, void, float>>::CollectiveOp;
  using CollectiveMainloop = Mainloop<
      exchanged, typename cutlass::gemm::collective::CollectiveBuilder<
                     cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, E4m3, cute::tuple<RowMajor*, ScalesA*>, 16, E4m3,
                     cute::tuple<ColumnMajor*, ScalesB*>, 16, float, Tile, Cluster,
                     cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename CollectiveEpilogue::SharedStorage))>,
                     cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperativeFP8Blockwise>::CollectiveOp>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<grouped::Size>, CollectiveMainloop, CollectiveEpilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Own = grouped::Groups<Kernel, XScales>;
  static constexpr bool has_exchanged = exchanged;

  static typename Gemm::Arguments arguments(const Own& groups, int64_t count, const cutlass::KernelHardwareInfo& hardware) {
    typename Gemm::Arguments made{cutlass::gemm::GemmUniversalMode::kGrouped,
                                  {static_cast<int>(count), groups.sizes, nullptr},
                                  {groups.a, groups.a_strides, groups.b, groups.b_strides, nullptr, nullptr, nullptr, nullptr},
                                  {{}, nullptr, nullptr, groups.d, groups.d_strides},
                                  hardware};
    made.mainloop.ptr_SFA = exchanged ? groups.w_scales : groups.x_scales;
    made.mainloop.ptr_SFB = exchanged ? groups.x_scales : groups.w_scales;
    if constexpr (exchanged)
      made.mainloop.layout_SFB = groups.x_layouts;
    else
      made.mainloop.layout_SFA = groups.x_layouts;
    return made;
  }

  static int64_t w_scales(const splice_cuda_grouped_sm90& args) { return (args.n + BLOCK - 1) / BLOCK * (args.k / BLOCK); }
};

using cute::Shape, cute::_32, cute::_128;
using Few = Product<true, Shape<_128, _32, _128>>;
using Many = Product<false, Shape<_128, _128, _128>>;

}  // namespace
}  // namespace splice::cuda

extern "C" {

int64_t splice_cuda_grouped_fp8_blocks_workspace(int64_t num_experts) {
  using namespace splice::cuda;
  return grouped::workspace<Few, Many>(NAME, num_experts);
}

int splice_cuda_grouped_fp8_blocks_gemm(const splice_cuda_grouped_blocks* args, void* stream) {
  using namespace splice::cuda;
  if (!args->product.x_scales || !args->product.w_scales)
    return fail(SPLICE_CUDA_INVALID, "%s: no scales, expected those of blocks of x and of W", NAME);
  if (args->x_scale_stride <= 0 || args->x_scale_stride > MAX_STRIDE)
    return fail(SPLICE_CUDA_INVALID, "%s: x_scale_stride %lld, expected 1 to %lld", NAME, static_cast<long long>(args->x_scale_stride),
                static_cast<long long>(MAX_STRIDE));
  return grouped::multiply<Few, Many>(NAME, args->product, BLOCK, stream, args->x_scale_stride);
}

}
