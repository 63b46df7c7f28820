// Rotation of queries and keys of latent attention, where queries are, and the write of latents and keys into the paged cache, latents
// normed on their way. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves 4·rope bytes a query head and 4·(rank + rope) a token, and once a token its row of the table: bound by memory. One warp a
// head of a token, and one its latent and key. Sums of squares run as in norm.cu, to the bit: 8 neighbours a lane, then lanes as a
// tree, then 32 lanes' sums in ascending order.
//
// Pushing rows also stores each latent and key, from the same registers, in the pool of a peer that is mapped here: 2·(rank + rope)
// bytes a token more, over NVLink between GPUs. The peer may believe them when an event behind this kernel is done.
#include "launch.h"
#include "rotation.h"

namespace splice::cuda {
namespace {

constexpr int WARPS = 4, MAX_CHUNKS = 4, MAX_RANK = MAX_CHUNKS * WARP * CHUNK_ELEMENTS;

SPLICE_DEVICE uint32_t* words_of(const void* data, int64_t element) {
  return reinterpret_cast<uint32_t*>(const_cast<uint16_t*>(static_cast<const uint16_t*>(data)) + element);
}

// Turns `rope` elements from `from` to `to`, which may be the same, and to `peer` unless NULL.
template <bool PUSHES>
SPLICE_DEVICE void turn(const splice_cuda_latent_store& args, int64_t token, const uint32_t* from, uint32_t* to, uint32_t* peer, int lane) {
  const int64_t rope = args.cache.rope, half = rope / 4;
  const float* cosines = args.cos_sin + args.positions[token] * rope;
  for (int64_t word = lane; word < half; word += WARP) {
    uint32_t a = from[word], b = from[half + word];
    rotate(a, b, cosines + 2 * word, cosines + 2 * half + 2 * word);
    to[word] = a;
    to[half + word] = b;
    if constexpr (PUSHES) {
      if (!peer) continue;
      peer[word] = a;
      peer[half + word] = b;
    }
  }
}

template <bool PUSHES>
SPLICE_DEVICE void store_latent(const splice_cuda_latent_store& args, int64_t token, Chunk* to, Chunk* peer, int lane) {
  const int chunks = static_cast<int>(args.cache.rank / CHUNK_ELEMENTS);
  const auto* from = reinterpret_cast<const Chunk*>(words_of(args.latents, token * args.latents_stride));
  Chunk kept[MAX_CHUNKS];
  float squares = 0.0f;
  SPLICE_UNROLL
  for (int i = 0; i < MAX_CHUNKS; ++i) {
    const int at = lane + i * WARP;
    if (i * WARP >= chunks) break;
    float own = 0.0f;
    if (at < chunks) {
      kept[i] = from[at];
      SPLICE_UNROLL
      for (int w = 0; w < 4; ++w) own = squares_of(kept[i].word[w], own);
    }
    if (args.norm) squares = i == 0 ? warp_sum(own) : sum(squares, warp_sum(own));
  }
  const float inverse = args.norm ? inverse_root(sum(quotient(squares, static_cast<float>(args.cache.rank)), args.eps)) : 1.0f;
  SPLICE_UNROLL
  for (int i = 0; i < MAX_CHUNKS; ++i) {
    const int at = lane + i * WARP;
    if (at >= chunks) break;
    if (args.norm) {
      SPLICE_UNROLL
      for (int w = 0; w < 4; ++w) kept[i].word[w] = weighted(kept[i].word[w], inverse, args.norm, 4 * at + w, args.norm_is_float32);
    }
    to[at] = kept[i];
    if constexpr (PUSHES)
      if (peer) peer[at] = kept[i];
  }
}

// Where the latent of a token begins in a cache.
SPLICE_DEVICE uint32_t* place_of(const splice_cuda_latents& cache, void* data, int64_t layer, int64_t slot) {
  const int64_t row = (slot / cache.block_tokens * cache.layers + layer) * cache.block_tokens + slot % cache.block_tokens;
  return words_of(data, row * (cache.rank + cache.rope));
}

template <bool PUSHES>
SPLICE_KERNEL __launch_bounds__(WARPS * WARP) store_latents(splice_cuda_latent_store args, const int64_t* peers, const int64_t* peer_slots) {
  const int64_t items = args.heads + 1, at = block_x() * WARPS + thread_index() / WARP;
  if (at >= args.tokens * items) return;
  const int lane = thread_index() % WARP;
  const int64_t token = at / items, item = at % items;
  const splice_cuda_latents& cache = args.cache;
  if (item < args.heads) {
    uint32_t* head = words_of(args.q, token * args.q_stride + item * (args.still + cache.rope) + args.still);
    turn<false>(args, token, head, head, nullptr, lane);
    return;
  }
  const int64_t slot = args.slots[token];
  if (slot < 0) return;
  const int64_t rank = cache.rank / 2;  // words
  uint32_t *to = place_of(cache, cache.data, args.layer, slot), *peer = nullptr;
  if constexpr (PUSHES) {
    if (peers[token] && peer_slots[token] >= 0) peer = place_of(cache, reinterpret_cast<void*>(peers[token]), args.layer, peer_slots[token]);
  }
  store_latent<PUSHES>(args, token, reinterpret_cast<Chunk*>(to), reinterpret_cast<Chunk*>(peer), lane);
  turn<PUSHES>(args, token, words_of(args.keys, token * args.keys_stride), to + rank, peer ? peer + rank : nullptr, lane);
}

int launch_store_latents(const splice_cuda_latent_store* args, const int64_t* peers, const int64_t* peer_slots, void* stream) {
  const splice_cuda_latents& cache = args->cache;
  if (cache.rank <= 0 || cache.rank % CHUNK_ELEMENTS || cache.rank > MAX_RANK || cache.rope <= 0 || cache.rope % CHUNK_ELEMENTS)
    return fail(SPLICE_CUDA_INVALID, "store_latents: latents of %lld + %lld, expected multiples of 8, the first at most %d",
                static_cast<long long>(cache.rank), static_cast<long long>(cache.rope), MAX_RANK);
  if (args->latents_stride % CHUNK_ELEMENTS || args->q_stride % 2 || args->keys_stride % 2 || args->still % 2)
    return fail(SPLICE_CUDA_INVALID, "store_latents: latents_stride must be a multiple of 8, q_stride, keys_stride and still even");
  if (!aligned(args->latents) || !aligned(cache.data))
    return fail(SPLICE_CUDA_INVALID, "store_latents: latents and the cache must be aligned to 16 bytes");
  const int64_t warps = args->tokens * (args->heads + 1);
  const auto kernel = peers ? store_latents<true> : store_latents<false>;
  return launch("store_latents", kernel, {(warps + WARPS - 1) / WARPS}, WARPS * WARP, 0, stream, *args, peers, peer_slots);
}

}  // namespace
}  // namespace splice::cuda

extern "C" {

int splice_cuda_store_latents(const splice_cuda_latent_store* args, void* stream) {
  return splice::cuda::launch_store_latents(args, nullptr, nullptr, stream);
}

int splice_cuda_push_latents(const splice_cuda_latent_push* args, void* stream) {
  using namespace splice::cuda;
  if (!args->peers || !args->peer_slots) return fail(SPLICE_CUDA_INVALID, "push_latents: peers and peer_slots are missing, expected one of each a row");
  return launch_store_latents(&args->store, args->peers, args->peer_slots, stream);
}

}
