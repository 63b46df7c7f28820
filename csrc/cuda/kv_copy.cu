// Copies of KV blocks between pools: gather, scatter, from a peer's pages straight into ours, and with a change of which heads a
// pool holds. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves 2 bytes a byte copied and computes nothing: bound by memory, or by the link to the peer. A block of threads copies one span
// `[block_tokens, head_dim]`, 64 bytes a thread in flight.
#include "launch.h"

namespace splice::cuda {
namespace {

constexpr int THREADS = 128, IN_FLIGHT = 4;

// A span's address: of copied block i, layer and head counted from the part's first.
SPLICE_BOTH char* span_of(const splice_cuda_pool& pool, int64_t planes, int64_t span_bytes, int64_t block, int64_t layer, int64_t plane,
                          int64_t head) {
  const int64_t layers = block * pool.layers + pool.first_layer + layer;
  return static_cast<char*>(pool.data) + ((layers * planes + plane) * pool.heads + pool.first_head + head) * span_bytes;
}

SPLICE_KERNEL __launch_bounds__(THREADS) copy_spans(splice_cuda_copy args) {
  int64_t at = block_x();
  const int64_t head = at % args.heads, plane = (at /= args.heads) % args.planes, layer = (at /= args.planes) % args.layers;
  const int64_t block = at / args.layers;
  const int64_t from_block = args.from.ids ? args.from.ids[block] : block, to_block = args.to.ids ? args.to.ids[block] : block;
  const auto* from = reinterpret_cast<const Chunk*>(span_of(args.from, args.planes, args.span_bytes, from_block, layer, plane, head));
  auto* to = reinterpret_cast<Chunk*>(span_of(args.to, args.planes, args.span_bytes, to_block, layer, plane, head));
  const int64_t chunks = args.span_bytes / CHUNK_BYTES;
  for (int64_t first = thread_index(); first < chunks; first += THREADS * IN_FLIGHT) {
    Chunk held[IN_FLIGHT];
    SPLICE_UNROLL
    for (int i = 0; i < IN_FLIGHT; ++i)
      if (first + i * THREADS < chunks) held[i] = from[first + i * THREADS];
    SPLICE_UNROLL
    for (int i = 0; i < IN_FLIGHT; ++i)
      if (first + i * THREADS < chunks) to[first + i * THREADS] = held[i];
  }
}

bool holds(const splice_cuda_pool& pool, const splice_cuda_copy& copy) {
  return pool.first_layer >= 0 && pool.first_head >= 0 && pool.first_layer + copy.layers <= pool.layers &&
         pool.first_head + copy.heads <= pool.heads;
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_kv_copy(const splice_cuda_copy* args, void* stream) {
  using namespace splice::cuda;
  if (args->span_bytes <= 0 || args->span_bytes % CHUNK_BYTES || !aligned(args->to.data) || !aligned(args->from.data))
    return fail(SPLICE_CUDA_INVALID, "kv_copy: spans of %lld bytes, expected a multiple of 16 and pools aligned to 16 bytes",
                static_cast<long long>(args->span_bytes));
  if (!holds(args->to, *args) || !holds(args->from, *args))
    return fail(SPLICE_CUDA_INVALID, "kv_copy: %lld layers and %lld heads do not lie within both pools", static_cast<long long>(args->layers),
                static_cast<long long>(args->heads));
  const int64_t spans = args->blocks * args->layers * args->planes * args->heads;
  return launch("kv_copy", copy_spans, {spans}, THREADS, 0, stream, *args);
}
