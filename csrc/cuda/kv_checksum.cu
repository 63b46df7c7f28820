// The 16-byte digest of KV blocks: made where a block is sealed, and again over the destination after a hand-off. The definition,
// in numpy, is kvtransfer/kv_checksum.py. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Reads each byte once, writes 16 bytes a block: bound by memory. About 36 integer operations a chunk of 16 bytes, four of them wide
// products: an SM of a H200 has time for about twice that while the chunk arrives. A block of threads sums a part of 64 KiB, 4 chunks
// a thread in flight; a second kernel adds the parts. What a block that is not full holds behind its last token is left out. Sums are integers modulo 2^64, exact in any order, so that neither how work is
// divided nor which blocks are summed together shows in the result.
#include "launch.h"

namespace splice::cuda {
namespace {

constexpr int THREADS = 256, IN_FLIGHT = 4, ROUNDS = 4;
constexpr int64_t PART_CHUNKS = THREADS * IN_FLIGHT * ROUNDS;
constexpr int JOIN_THREADS = WARP;

struct Sums {
  uint64_t low, high;
};

SPLICE_BOTH uint64_t keyed(uint32_t one, uint32_t other, uint32_t key, uint32_t other_key) {
  return static_cast<uint64_t>(one + key) * static_cast<uint64_t>(other + other_key);
}

// Of the chunk at `place`, counted from 0: two keys from the place, then two products a sum (NH).
SPLICE_BOTH void add_chunk(Sums& sums, const Chunk& chunk, uint32_t place) {
  uint32_t low = place + 1;
  low ^= low >> 16;
  low *= 0x85ebca6bu;
  low ^= low >> 13;
  low *= 0xc2b2ae35u;
  low ^= low >> 16;
  uint32_t high = low * 0x9e3779b1u + 0x7f4a7c15u;
  high ^= high >> 15;
  const uint32_t(&w)[4] = chunk.word;
  sums.low += keyed(w[0], w[1], low ^ 0x9e3779b9u, high ^ 0x85ebca6bu) + keyed(w[2], w[3], low ^ 0xc2b2ae35u, high ^ 0x27d4eb2fu);
  sums.high += keyed(w[0], w[2], low ^ 0x165667b1u, high ^ 0xd3a2646cu) + keyed(w[1], w[3], low ^ 0xfd7046c5u, high ^ 0xb55a4f09u);
}

SPLICE_BOTH uint64_t finished(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

SPLICE_DEVICE Sums warp_sums(Sums sums) {
  SPLICE_UNROLL
  for (int mask = WARP / 2; mask > 0; mask /= 2) {
    sums.low += from_lane_xor(sums.low, mask);
    sums.high += from_lane_xor(sums.high, mask);
  }
  return sums;
}

// Which chunks of a block count: all, or those of rows of its first tokens.
struct Counted {
  uint32_t row_chunks, block_tokens, tokens;

  SPLICE_DEVICE bool has(uint32_t chunk) const { return tokens >= block_tokens || chunk / row_chunks % block_tokens < tokens; }
};

SPLICE_DEVICE Counted counted(const splice_cuda_checksum& args, int64_t block) {
  if (!args.tokens) return {1, 0, 0};
  return {static_cast<uint32_t>(args.row_bytes / CHUNK_BYTES), static_cast<uint32_t>(args.block_tokens), static_cast<uint32_t>(args.tokens[block])};
}

SPLICE_KERNEL __launch_bounds__(THREADS) sum_parts(splice_cuda_checksum args, int64_t parts) {
  const int64_t chunks = args.block_bytes / CHUNK_BYTES, block = block_x() / parts, part = block_x() % parts;
  const int64_t id = args.ids ? args.ids[block] : block, end = part * PART_CHUNKS + PART_CHUNKS;
  const auto* from = reinterpret_cast<const Chunk*>(static_cast<const char*>(args.data) + id * args.block_bytes);
  const Counted rows = counted(args, block);
  Sums sums = {0, 0};
  for (int64_t first = part * PART_CHUNKS + thread_index(); first < chunks && first < end; first += THREADS * IN_FLIGHT) {
    Chunk held[IN_FLIGHT];
    SPLICE_UNROLL
    for (int i = 0; i < IN_FLIGHT; ++i)
      if (first + i * THREADS < chunks) held[i] = from[first + i * THREADS];
    SPLICE_UNROLL
    for (int i = 0; i < IN_FLIGHT; ++i)
      if (first + i * THREADS < chunks && rows.has(static_cast<uint32_t>(first + i * THREADS)))
        add_chunk(sums, held[i], static_cast<uint32_t>(first + i * THREADS));
  }
  auto* room = reinterpret_cast<Sums*>(shared_memory());
  sums = warp_sums(sums);
  if (thread_index() % WARP == 0) room[thread_index() / WARP] = sums;
  barrier();
  if (thread_index() != 0) return;
  Sums total = room[0];
  for (int warp = 1; warp < THREADS / WARP; ++warp) total = {total.low + room[warp].low, total.high + room[warp].high};
  static_cast<Sums*>(args.workspace)[block_x()] = total;
}

SPLICE_KERNEL __launch_bounds__(JOIN_THREADS) join_parts(splice_cuda_checksum args, int64_t parts) {
  const auto* from = static_cast<const Sums*>(args.workspace) + block_x() * parts;
  Sums sums = {0, 0};
  for (int64_t part = thread_index(); part < parts; part += JOIN_THREADS) sums = {sums.low + from[part].low, sums.high + from[part].high};
  sums = warp_sums(sums);
  if (thread_index() != 0) return;
  const auto chunks = static_cast<uint64_t>(args.block_bytes / CHUNK_BYTES);
  static_cast<Sums*>(args.sums)[block_x()] = {finished(sums.low + chunks), finished(sums.high + chunks)};
}

int64_t parts_of(int64_t block_bytes) { return (block_bytes / CHUNK_BYTES + PART_CHUNKS - 1) / PART_CHUNKS; }

}  // namespace
}  // namespace splice::cuda

extern "C" {

int64_t splice_cuda_kv_checksum_workspace(int64_t blocks, int64_t block_bytes) {
  return blocks * splice::cuda::parts_of(block_bytes) * static_cast<int64_t>(sizeof(splice::cuda::Sums));
}

int splice_cuda_kv_checksum(const splice_cuda_checksum* args, void* stream) {
  using namespace splice::cuda;
  constexpr int64_t most = int64_t{CHUNK_BYTES} << 32;
  if (args->block_bytes <= 0 || args->block_bytes % CHUNK_BYTES || args->block_bytes > most || !aligned(args->data))
    return fail(SPLICE_CUDA_INVALID, "kv_checksum: blocks of %lld bytes, expected a multiple of 16 up to 64 GiB and a pool aligned to 16 bytes",
                static_cast<long long>(args->block_bytes));
  if (!aligned(args->sums) || !aligned(args->workspace) || args->blocks < 0)
    return fail(SPLICE_CUDA_INVALID, "kv_checksum: %lld sums, expected none or more, with sums and workspace aligned to 16 bytes",
                static_cast<long long>(args->blocks));
  if (args->tokens && (args->row_bytes <= 0 || args->row_bytes % CHUNK_BYTES || args->block_tokens <= 0 || args->block_bytes % (args->row_bytes * args->block_tokens)))
    return fail(SPLICE_CUDA_INVALID, "kv_checksum: %lld rows of %lld bytes in blocks of %lld, expected rows of a multiple of 16 bytes, as many as make whole blocks",
                static_cast<long long>(args->block_tokens), static_cast<long long>(args->row_bytes), static_cast<long long>(args->block_bytes));
  const int64_t parts = parts_of(args->block_bytes);
  const int code = launch("kv_checksum", sum_parts, {args->blocks * parts}, THREADS, THREADS / WARP * sizeof(Sums), stream, *args, parts);
  if (code != SPLICE_CUDA_OK) return code;
  return launch("kv_checksum", join_parts, {args->blocks}, JOIN_THREADS, 0, stream, *args, parts);
}

}
