// Tokens into the order of their experts and back. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// permute is a stable counting sort: an expert's block counts all choices, reads them twice more to rank its own, and waits for no
// other, so that one launch does it. It reads 24 bytes a choice and expert, from the second-level cache: 200 MB for 8192 tokens of 8
// choices among 128 experts, against milliseconds of products; nothing for a decode step. No order of atomics shows: counts are whole
// numbers, and ranks come from votes of a warp in the order of choices.
//
// gather_rows reads a token once and writes it top_k times; unpermute reads top_k rows a token and writes one: both bound by memory.
#include "launch.h"
#include "rows.h"

namespace splice::cuda {
namespace {

constexpr int THREADS = 512, WARPS = THREADS / WARP, MAX_EXPERTS = 1024, COPY_THREADS = 128;
constexpr int64_t MAX_ROWS = (int64_t{1} << 31) - 1;

struct Shared {
  unsigned int counts[MAX_EXPERTS];
  unsigned long long before[WARPS];  // rows in the high half, tiles in the low one
  int ranks[WARPS];
};

SPLICE_DEVICE int tiles_of(int64_t rows, int64_t tile_rows) { return static_cast<int>((rows + tile_rows - 1) / tile_rows); }

// Rows and tiles of the experts below `expert`, in the halves of a number.
SPLICE_DEVICE unsigned long long before(const splice_cuda_permutation& args, Shared& shared, int expert) {
  unsigned long long own = 0;
  for (int i = thread_index(); i < expert; i += THREADS)
    own += static_cast<unsigned long long>(shared.counts[i]) << 32 | static_cast<unsigned int>(tiles_of(shared.counts[i], args.tile_rows));
  SPLICE_UNROLL
  for (int mask = WARP / 2; mask > 0; mask /= 2) own += from_lane_xor(own, mask);
  if (thread_index() % WARP == 0) shared.before[thread_index() / WARP] = own;
  barrier();
  unsigned long long total = 0;
  for (int warp = 0; warp < WARPS; ++warp) total += shared.before[warp];
  return total;
}

SPLICE_KERNEL __launch_bounds__(THREADS) permute_choices(splice_cuda_permutation args) {
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
  const int expert = static_cast<int>(block_x()), lane = thread_index() % WARP, warp = thread_index() / WARP;
  const int64_t choices = args.tokens * args.top_k;
  for (int i = thread_index(); i < args.num_experts; i += THREADS) shared.counts[i] = 0;
  barrier();
  SPLICE_UNROLL_BY_8
  for (int64_t i = thread_index(); i < choices; i += THREADS) {
    const int64_t id = args.experts[i];
    if (id >= 0 && id < args.num_experts)
      add_shared(&shared.counts[id], 1u);
    else if (expert == 0)
      args.places[i] = -1;
  }
  barrier();
  const unsigned long long below = before(args, shared, expert);
  const int count = static_cast<int>(shared.counts[expert]), first_tile = static_cast<int>(below & 0xffffffffu);
  const int offset = args.max_rows ? static_cast<int>(expert * args.max_rows) : static_cast<int>(below >> 32);
  const int tiles = tiles_of(count, args.tile_rows), tile_rows = static_cast<int>(args.tile_rows);
  for (int i = thread_index(); i < tiles; i += THREADS) {
    const int left = count - i * tile_rows;
    args.tiles[first_tile + i] = {expert, offset + i * tile_rows, left < tile_rows ? left : tile_rows};
  }
  if (thread_index() == 0) {
    args.counts[expert] = count;
    args.offsets[expert] = offset;
    if (expert == args.num_experts - 1) *args.tile_count = first_tile + tiles;
  }

  // Each warp ranks the expert's among a span of choices; spans follow one another.
  const int64_t span = (choices + THREADS - 1) / THREADS * WARP, begin = warp * span;
  const int64_t end = begin + span < choices ? begin + span : choices;
  int found = 0;
  SPLICE_UNROLL_BY_8
  for (int64_t i = begin; i < end; i += WARP) found += lanes_in(lanes_where(i + lane < end && args.experts[i + lane] == expert));
  if (lane == 0) shared.ranks[warp] = found;
  barrier();
  int next = offset;
  for (int i = 0; i < warp; ++i) next += shared.ranks[i];
  for (int64_t i = begin; i < end; i += WARP) {
    const bool is_own = i + lane < end && args.experts[i + lane] == expert;
    const uint32_t own = lanes_where(is_own);
    if (is_own) {
      const int place = next + lanes_in(own & ((1u << lane) - 1));
      args.places[i + lane] = place;
      args.sources[place] = static_cast<int32_t>((i + lane) / args.top_k);
    }
    next += lanes_in(own);
  }
}

// Thread t of a token's blocks has chunk t.
SPLICE_KERNEL __launch_bounds__(COPY_THREADS) gather_chunks(splice_cuda_gathering args) {
  const int64_t chunks = args.size / CHUNK_ELEMENTS, at = block_x() * COPY_THREADS + thread_index();
  if (at >= args.tokens * chunks) return;
  const int64_t token = at / chunks, chunk = at % chunks;
  const Chunk value = reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.x) + token * args.x_stride)[chunk];
  for (int64_t i = 0; i < args.top_k; ++i) {
    const int64_t place = args.places[token * args.top_k + i];
    if (place >= 0) static_cast<Chunk*>(args.y)[place * chunks + chunk] = value;
  }
}

SPLICE_KERNEL __launch_bounds__(COPY_THREADS) sum_choices(splice_cuda_unpermutation args) {
  const int64_t chunks = args.size / CHUNK_ELEMENTS, at = block_x() * COPY_THREADS + thread_index();
  if (at >= args.tokens * chunks) return;
  const int64_t token = at / chunks, chunk = at % chunks;
  float total[CHUNK_ELEMENTS] = {};
  bool is_first = true;  // nothing is added to a zero: it would lose a negative one's sign
  SPLICE_UNROLL_BY_8
  for (int64_t i = 0; i < args.top_k; ++i) {
    const int64_t place = args.places[token * args.top_k + i];
    if (place < 0) continue;
    const float weight = args.weights[token * args.top_k + i];
    const Chunk value = static_cast<const Chunk*>(args.y)[place * chunks + chunk];
    SPLICE_UNROLL
    for (int e = 0; e < CHUNK_ELEMENTS; ++e) {
      const float share = product(e % 2 ? high_of(value.word[e / 2]) : low_of(value.word[e / 2]), weight);
      total[e] = is_first ? share : sum(total[e], share);
    }
    is_first = false;
  }
  if (args.shared) {
    const Chunk value = reinterpret_cast<const Chunk*>(static_cast<const uint16_t*>(args.shared) + token * args.shared_stride)[chunk];
    SPLICE_UNROLL
    for (int e = 0; e < CHUNK_ELEMENTS; ++e)
      total[e] = sum(total[e], e % 2 ? high_of(value.word[e / 2]) : low_of(value.word[e / 2]));
  }
  Chunk out;
  SPLICE_UNROLL
  for (int w = 0; w < 4; ++w) out.word[w] = to_bf16_pair(total[2 * w], total[2 * w + 1]);
  static_cast<Chunk*>(args.out)[at] = out;
}

int64_t row_blocks(int64_t tokens, int64_t size) { return (tokens * (size / CHUNK_ELEMENTS) + COPY_THREADS - 1) / COPY_THREADS; }

}  // namespace
}  // namespace splice::cuda

extern "C" {

int64_t splice_cuda_permute_tiles(int64_t tokens, int64_t top_k, int64_t num_experts, int64_t tile_rows) {
  const int64_t choices = tokens * top_k;
  return choices / tile_rows + (choices < num_experts ? choices : num_experts);  // each expert may have one that is not full
}

int splice_cuda_permute(const splice_cuda_permutation* args, void* stream) {
  using namespace splice::cuda;
  const splice_cuda_permutation& a = *args;
  if (a.num_experts <= 0 || a.num_experts > MAX_EXPERTS || a.tokens < 0 || a.top_k <= 0 || a.tile_rows <= 0)
    return fail(SPLICE_CUDA_INVALID, "permute: %lld choices among %lld experts in tiles of %lld rows, expected 1 to %d experts",
                static_cast<long long>(a.top_k), static_cast<long long>(a.num_experts), static_cast<long long>(a.tile_rows), MAX_EXPERTS);
  if (a.max_rows && a.max_rows < a.tokens)
    return fail(SPLICE_CUDA_INVALID, "permute: %lld rows an expert for %lld tokens, expected as many at least",
                static_cast<long long>(a.max_rows), static_cast<long long>(a.tokens));
  if (a.tokens * a.top_k > MAX_ROWS || a.num_experts * a.max_rows > MAX_ROWS)
    return fail(SPLICE_CUDA_INVALID, "permute: more rows than 32 bits count");
  return launch("permute", permute_choices, {a.num_experts}, THREADS, sizeof(Shared), stream, a);
}

int splice_cuda_gather_rows(const splice_cuda_gathering* args, void* stream) {
  using namespace splice::cuda;
  const splice_cuda_gathering& a = *args;
  if (a.tokens < 0 || a.top_k <= 0 || a.size <= 0 || a.size % CHUNK_ELEMENTS || a.x_stride % CHUNK_ELEMENTS || !aligned(a.x) || !aligned(a.y))
    return fail(SPLICE_CUDA_INVALID, "gather_rows: size %lld and x_stride %lld, expected multiples of 8, x and y aligned to 16 bytes",
                static_cast<long long>(a.size), static_cast<long long>(a.x_stride));
  return launch("gather_rows", gather_chunks, {row_blocks(a.tokens, a.size)}, COPY_THREADS, 0, stream, a);
}

int splice_cuda_unpermute(const splice_cuda_unpermutation* args, void* stream) {
  using namespace splice::cuda;
  const splice_cuda_unpermutation& a = *args;
  if (a.tokens < 0 || a.top_k <= 0 || a.size <= 0 || a.size % CHUNK_ELEMENTS || a.shared_stride % CHUNK_ELEMENTS || !aligned(a.y) ||
      !aligned(a.out) || !aligned(a.shared))
    return fail(SPLICE_CUDA_INVALID, "unpermute: size %lld and shared_stride %lld, expected multiples of 8, matrices aligned to 16 bytes",
                static_cast<long long>(a.size), static_cast<long long>(a.shared_stride));
  return launch("unpermute", sum_choices, {row_blocks(a.tokens, a.size)}, COPY_THREADS, 0, stream, a);
}

}
