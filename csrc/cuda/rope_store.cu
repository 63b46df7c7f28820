// Norms of heads, rotary embedding, and the write of keys and values into the paged cache. Compiled for sm_80 and sm_90; not yet
// run on a GPU.
//
// Moves 4 bytes an element of q, k and v, and once a token its row of the table: bound by memory. One warp a head of a token; lane i
// has the pairs i, i + 32, … of the first half and their partners. Rotation as in RoFormer (arXiv 2104.09864) in the halves order of
// GPT-NeoX, two products and a sum, each rounded to float32.
//
// Pushing rows also stores each key and value, from the same registers, in the pool of a peer that is mapped here: 2 bytes an element
// more, over NVLink between GPUs. The peer may believe them when an event behind this kernel is done.
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
  uint32_t* peer = nullptr;
};

template <bool PUSHES>
SPLICE_DEVICE void store(const Head& head, int64_t word, uint32_t value) {
  head.to[word] = value;
  if constexpr (PUSHES)
    if (head.peer) head.peer[word] = value;
}

// Words 0 to `half` of the first half meet `half` to 2·half; those after them turn with nobody.
template <bool PUSHES>
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
    store<PUSHES>(head, word, a[i]);
    store<PUSHES>(head, half + word, b[i]);
  }
  SPLICE_UNROLL
  for (int i = 0; i < 2 * MAX_WORDS; ++i) {
    const int word = lane + i * WARP;
    if (word >= rest) continue;
    if (head.norm) c[i] = weighted(c[i], inverse, head.norm, 2 * half + word, wide);
    store<PUSHES>(head, 2 * half + word, c[i]);
  }
}

SPLICE_DEVICE const uint32_t* head_of(const void* rows, int64_t stride, int64_t token, int64_t head, int64_t dim) {
  return reinterpret_cast<const uint32_t*>(static_cast<const uint16_t*>(rows) + token * stride + head * dim);
}

// Where the head of a token begins in a cache.
SPLICE_DEVICE uint32_t* place_of(const splice_cuda_kv& kv, int64_t layer, int64_t slot, int64_t plane, int64_t head) {
  return reinterpret_cast<uint32_t*>(kv_plane(kv, layer, slot / kv.block_tokens, plane, head) + slot % kv.block_tokens * kv.head_dim);
}

template <bool PUSHES>
SPLICE_KERNEL __launch_bounds__(WARPS * WARP) rope_store(splice_cuda_rope args, const int64_t* peers, const int64_t* peer_slots) {
  // Counted in 32 bits: a warp has a row of head_dim to move, and a quotient of 64 is a third of its instructions.
  const auto heads = static_cast<uint32_t>(args.q_heads + 2 * args.kv.kv_heads), at = static_cast<uint32_t>(block_x()) * WARPS + thread_index() / WARP;
  const int64_t dim = args.kv.head_dim;
  if (at >= args.tokens * heads) return;
  const int lane = thread_index() % WARP;
  const int64_t token = at / heads, head = at % heads;
  if (head < args.q_heads) {
    auto* to = reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(args.out) + (token * args.q_heads + head) * dim);
    turn_head<false>(args, {head_of(args.q, args.q_stride, token, head, dim), to, args.q_norm}, token, lane);
    return;
  }
  const int64_t slot = args.slots[token];
  if (slot < 0) return;
  const int64_t plane = head < args.q_heads + args.kv.kv_heads ? 0 : 1, kv_head = head - args.q_heads - plane * args.kv.kv_heads;
  Head stored = {nullptr, place_of(args.kv, args.layer, slot, plane, kv_head), args.k_norm};
  if constexpr (PUSHES) {
    if (peers[token] && peer_slots[token] >= 0) {
      splice_cuda_kv there = args.kv;
      there.data = reinterpret_cast<void*>(peers[token]);
      stored.peer = place_of(there, args.layer, peer_slots[token], plane, kv_head);
    }
  }
  if (plane == 0) {
    stored.from = head_of(args.k, args.k_stride, token, kv_head, dim);
    turn_head<PUSHES>(args, stored, token, lane);
  } else {
    const uint32_t* from = head_of(args.v, args.v_stride, token, kv_head, dim);
    for (int64_t word = lane; word < dim / 2; word += WARP) store<PUSHES>(stored, word, from[word]);
  }
}

int launch_rope_store(const splice_cuda_rope* args, const int64_t* peers, const int64_t* peer_slots, void* stream) {
  const int64_t dim = args->kv.head_dim, most = 4 * WARP * MAX_WORDS;
  if (dim <= 0 || dim % 2 || dim > most || args->rotary_dim < 0 || args->rotary_dim % 4 || args->rotary_dim > dim)
    return fail(SPLICE_CUDA_INVALID, "rope_store: head_dim %lld and rotary_dim %lld, expected an even head_dim of at most %lld and a multiple of 4 within it",
                static_cast<long long>(dim), static_cast<long long>(args->rotary_dim), static_cast<long long>(most));
  if (args->q_stride % 2 || args->k_stride % 2 || args->v_stride % 2)
    return fail(SPLICE_CUDA_INVALID, "rope_store: q_stride, k_stride and v_stride must be even");
  const int64_t heads = args->tokens * (args->q_heads + 2 * args->kv.kv_heads), most_heads = int64_t{1} << 31;
  if (heads > most_heads)
    return fail(SPLICE_CUDA_INVALID, "rope_store: %lld heads of all tokens, expected at most %lld", static_cast<long long>(heads),
                static_cast<long long>(most_heads));
  const auto kernel = peers ? rope_store<true> : rope_store<false>;
  return launch("rope_store", kernel, {(heads + WARPS - 1) / WARPS}, WARPS * WARP, 0, stream, *args, peers, peer_slots);
}

}  // namespace
}  // namespace splice::cuda

extern "C" {

int splice_cuda_rope_store(const splice_cuda_rope* args, void* stream) { return splice::cuda::launch_rope_store(args, nullptr, nullptr, stream); }

int splice_cuda_rope_push(const splice_cuda_push* args, void* stream) {
  using namespace splice::cuda;
  if (!args->peers || !args->peer_slots) return fail(SPLICE_CUDA_INVALID, "rope_push: peers and peer_slots are missing, expected one of each a row");
  return launch_rope_store(&args->rope, args->peers, args->peer_slots, stream);
}

}
