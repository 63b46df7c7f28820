// Norms of heads, rotary embedding, and the write of keys and values into the paged cache. Compiled for sm_80 and sm_90; not yet
// run on a GPU.
//
// Moves 4 bytes an element of q, k and v, and once a token its row of the table: bound by memory. One warp a head of a token; lane i
// has the pairs i, i + 32, … of the first half and their partners. Rotation as in RoFormer (arXiv 2104.09864) in the halves order of
// GPT-NeoX, two products and a sum, each rounded to float32.
#include "launch.h"
#include "paging.h"
#include "rotation.h"

namespace splice::cuda {
namespace {

constexpr int WARPS = 4, MAX_WORDS = 4;  // words of two elements a lane keeps of each half; head_dim ≤ 2·2·32·4

struct Head {
  const uint32_t* from;
  uint32_t* to;
  const void* norm;
};

// Words 0 to `half` of the first half meet `half` to 2·half; those after them turn with nobody.
SPLICE_DEVICE void turn_head(const splice_cuda_rope& args, const Head& head, int64_t token, int lane) {
  const int half = static_cast<int>(args.rotary_dim / 4), words = static_cast<int>(args.kv.head_dim / 2), rest = words - 2 * half;
  uint32_t a[MAX_WORDS], b[MAX_WORDS], c[2 * MAX_WORDS];
  float squares = 0.0f;
  SPLICE_UNROLL
  for (int i = 0; i < MAX_WORDS; ++i) {
    const int word = lane + i * WARP;
    if (word >= half) continue;
    a[i] = head.from[word];
    b[i] = head.from[half + word];
    squares = squares_of(b[i], squares_of(a[i], squares));
  }
  SPLICE_UNROLL
  for (int i = 0; i < 2 * MAX_WORDS; ++i) {
    const int word = lane + i * WARP;
    if (word >= rest) continue;
    c[i] = head.from[2 * half + word];
    squares = squares_of(c[i], squares);
  }
  float inverse = 1.0f;
  if (head.norm) inverse = inverse_root(sum(quotient(warp_sum(squares), static_cast<float>(args.kv.head_dim)), args.eps));
  const float* cosines = args.rotary_dim ? args.cos_sin + args.positions[token] * args.rotary_dim : nullptr;
  const bool wide = args.norm_is_float32;
  SPLICE_UNROLL
  for (int i = 0; i < MAX_WORDS; ++i) {
    const int word = lane + i * WARP;
    if (word >= half) continue;
    if (head.norm) {
      a[i] = weighted(a[i], inverse, head.norm, word, wide);
      b[i] = weighted(b[i], inverse, head.norm, half + word, wide);
    }
    rotate(a[i], b[i], cosines + 2 * word, cosines + 2 * half + 2 * word);
    head.to[word] = a[i];
    head.to[half + word] = b[i];
  }
  SPLICE_UNROLL
  for (int i = 0; i < 2 * MAX_WORDS; ++i) {
    const int word = lane + i * WARP;
    if (word >= rest) continue;
    if (head.norm) c[i] = weighted(c[i], inverse, head.norm, 2 * half + word, wide);
    head.to[2 * half + word] = c[i];
  }
}

SPLICE_DEVICE const uint32_t* head_of(const void* rows, int64_t stride, int64_t token, int64_t head, int64_t dim) {
  return reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(rows) + token * stride + head * dim);
}

SPLICE_KERNEL __launch_bounds__(WARPS * WARP) rope_store(splice_cuda_rope args) {
  const int64_t heads = args.q_heads + 2 * args.kv.kv_heads, at = block_x() * WARPS + thread_index() / WARP, dim = args.kv.head_dim;
  if (at >= args.tokens * heads) return;
  const int lane = thread_index() % WARP;
  const int64_t token = at / heads, head = at % heads;
  if (head < args.q_heads) {
    auto* to = reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(args.out) + (token * args.q_heads + head) * dim);
    turn_head(args, {head_of(args.q, args.q_stride, token, head, dim), to, args.q_norm}, token, lane);
    return;
  }
  const int64_t slot = args.slots[token];
  if (slot < 0) return;
  const int64_t plane = (head - args.q_heads) / args.kv.kv_heads, kv_head = (head - args.q_heads) % args.kv.kv_heads;
  uint16_t* block = kv_plane(args.kv, args.layer, slot / args.kv.block_tokens, plane, kv_head);
  auto* to = reinterpret_cast<uint32_t*>(block + slot % args.kv.block_tokens * dim);
  if (plane == 0) {
    turn_head(args, {head_of(args.k, args.k_stride, token, kv_head, dim), to, args.k_norm}, token, lane);
  } else {
    const uint32_t* from = head_of(args.v, args.v_stride, token, kv_head, dim);
    for (int64_t word = lane; word < dim / 2; word += WARP) to[word] = from[word];
  }
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_rope_store(const splice_cuda_rope* args, void* stream) {
  using namespace splice::cuda;
  const int64_t dim = args->kv.head_dim, most = 4 * WARP * MAX_WORDS;
  if (dim <= 0 || dim % 2 || dim > most || args->rotary_dim < 0 || args->rotary_dim % 4 || args->rotary_dim > dim)
    return fail(SPLICE_CUDA_INVALID, "rope_store: head_dim %lld and rotary_dim %lld, expected an even head_dim of at most %lld and a multiple of 4 within it",
                static_cast<long long>(dim), static_cast<long long>(args->rotary_dim), static_cast<long long>(most));
  if (args->q_stride % 2 || args->k_stride % 2 || args->v_stride % 2)
    return fail(SPLICE_CUDA_INVALID, "rope_store: q_stride, k_stride and v_stride must be even");
  const int64_t heads = args->tokens * (args->q_heads + 2 * args->kv.kv_heads);
  return launch("rope_store", rope_store, {(heads + WARPS - 1) / WARPS}, WARPS * WARP, 0, stream, *args);
}
