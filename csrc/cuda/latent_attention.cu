// Paged causal attention over latents, for few query rows a sequence and for many. Compiled for sm_80 and sm_90; not yet run on a GPU.
//
// Moves 2·(rank + rope) bytes a key, once for every block of rows, of which all but the first find them in the second-level cache;
// queries and results once; and decode 8·(rank + 2) bytes a row and span of 1024 keys for the parts that are joined: at 128 heads
// nearly half of what the keys are, at 16 heads a twentieth. Does 4·rank + 2·rope operations a row and key, 242 a byte at 128 heads of
// 512 + 64: bound by the matrix units from some 100 heads on, by memory below. Scores read 1.5 KiB of shared memory for 4 products of
// fragments, values 4 KiB for 32, which keeps 64 rows at some two thirds of what mma.sync could do, and that is some 60 % of wgmma.
//
// A block of eight warps takes 16, 32 or 64 rows (heads × tokens) and reads each tile of 64 keys once for scores and values
// (latent_tile.h), from a ring of two to four halves of tiles in shared memory: two run on 99 KiB of it, four hide the copies.
// - decode: one block a span. Rows that see one span are finished by it, the others leave parts, which a second kernel joins.
// - prefill: as many blocks as fit go through all rows; sums over spans lie in a place of each block's own, in the order of its
//   registers, where 1024 keys are between two visits: 64 rows' sums beside their accumulators would be all registers there are.
#include "device_limits.h"
#include "latent_parts.h"
#include "latent_tile.h"

namespace splice::cuda {
namespace {

constexpr int MAX_GROUPS = 4;

// What a block has gathered of its rows over spans.
template <class Shape, int groups>
struct Gathered {
  const LatentRows& rows;
  uint32_t first;
  LatentShared<Shape, groups>& shared;

  // Of its row: nothing yet.
  SPLICE_DEVICE void begin() const {
    if (thread_index() >= shared.rows) return;
    shared.maximum[thread_index()] = NEGATIVE_INFINITY;
    shared.total[thread_index()] = 0.0f;
  }
  // A span's maximum and sum.
  SPLICE_DEVICE void join(int row, float maximum, float total) const {
    const Shares shares = joined(shared.maximum[row], maximum);
    shared.maximum[row] = shares.maximum;
    shared.total[row] = merged(shared.total[row], total, shares);
    shared.own[row] = shares.own;
    shared.other[row] = shares.other;
  }
  SPLICE_DEVICE Shares shares(int row) const { return {0.0f, shared.own[row], shared.other[row]}; }
  // Two neighbouring elements of a row, of this thread's fragment.
  SPLICE_DEVICE void write(int row, int fragment, float left, float right) const {
    const int lane = thread_index() % WARP, warp = thread_index() / WARP;
    auto* to = reinterpret_cast<uint32_t*>(rows.out(first + static_cast<uint32_t>(row))) + lane % 4;
    const float total = shared.total[row];
    to[(warp * Shape::fragments + fragment) * FRAGMENT_COLUMNS / 2] = to_bf16_pair(quotient(left, total), quotient(right, total));
  }
};

// Block (x, y, z): row tile x, span y, sequence z.
template <class Shape, int groups>
SPLICE_KERNEL __launch_bounds__(LATENT_THREADS, 1) attend_latent_span(splice_cuda_latent_attention args, int shift, int halves, int64_t spans) {
  auto& shared = *reinterpret_cast<LatentShared<Shape, groups>*>(shared_memory());
  const LatentRows rows(args, block_z());
  const uint32_t first = static_cast<uint32_t>(block_x()) * shared.rows;
  const int span = static_cast<int>(block_y());
  if (first >= rows.count) return;
  const int end = rows.end(first + shared.rows <= rows.count ? first + shared.rows - 1 : rows.count - 1);
  if (span * LATENT_SPAN_KEYS >= end) return;
  const int tiles = (end + TILE_KEYS - 1) / TILE_KEYS, first_tile = span * LATENT_SPAN_TILES;
  const int last_tile = tiles < first_tile + LATENT_SPAN_TILES ? tiles : first_tile + LATENT_SPAN_TILES;
  const Parts parts(args, spans);
  const Gathered<Shape, groups> gathered{rows, first, shared};
  gathered.begin();
  const auto fold = [&](int row, float maximum, float total) {
    const uint32_t query = first + static_cast<uint32_t>(row);
    gathered.join(row, maximum, total);
    if (rows.end(query) <= LATENT_SPAN_KEYS) return;
    float* to = parts.sum_of(rows.place(query), span);
    to[0] = maximum;
    to[1] = total;
  };
  const auto close = [&](int, const float(&acc)[groups][Shape::fragments][4]) {
    const int lane = thread_index() % WARP, warp = thread_index() / WARP;
    SPLICE_UNROLL
    for (int i = 0; i < 2 * groups; ++i) {
      const int row = i * 8 + lane / 4;
      const uint32_t query = first + static_cast<uint32_t>(row);
      if (query >= rows.count) continue;
      const bool whole = rows.end(query) <= LATENT_SPAN_KEYS;
      const Shares shares = gathered.shares(row);
      float* part = parts.accumulator(whole ? 0 : rows.place(query), whole ? 0 : span, Shape::rank);
      auto* to = reinterpret_cast<Pair*>(part) + warp * Shape::fragments * FRAGMENT_COLUMNS / 2 + lane % 4;
      SPLICE_UNROLL
      for (int fragment = 0; fragment < Shape::fragments; ++fragment) {
        const float left = acc[i / 2][fragment][i % 2 * 2], right = acc[i / 2][fragment][i % 2 * 2 + 1];
        if (!whole)
          to[fragment * FRAGMENT_COLUMNS / 2] = {left, right};
        else if (span == 0)
          gathered.write(row, fragment, merged(0.0f, left, shares), merged(0.0f, right, shares));
      }
    }
  };
  attend_latents<Shape, groups>(rows, first, shift, first_tile, last_tile, end, halves, shared, fold, close);
}

// A grid of any width; item i is a sequence's row tile, the last tiles first, since they see most.
template <class Shape, int groups>
SPLICE_KERNEL __launch_bounds__(LATENT_THREADS, 1) attend_latent_rows(splice_cuda_latent_attention args, int shift, int halves, uint32_t items) {
  auto& shared = *reinterpret_cast<LatentShared<Shape, groups>*>(shared_memory());
  auto* place = static_cast<Quad*>(args.workspace) + block_x() * groups * Shape::fragments * LATENT_THREADS + thread_index();
  const auto sequences = static_cast<uint32_t>(args.sequences);
  for (auto item = static_cast<uint32_t>(block_x()); item < items; item += static_cast<uint32_t>(grid_x())) {
    const LatentRows rows(args, item % sequences);
    const uint32_t first = (items - 1 - item) / sequences * static_cast<uint32_t>(shared.rows);
    if (first >= rows.count) continue;
    const int end = rows.end(first + shared.rows <= rows.count ? first + shared.rows - 1 : rows.count - 1);
    const int tiles = (end + TILE_KEYS - 1) / TILE_KEYS, last_span = (end - 1) / LATENT_SPAN_KEYS;
    const Gathered<Shape, groups> gathered{rows, first, shared};
    barrier();  // everybody has written the rows before
    gathered.begin();
    const auto fold = [&](int row, float maximum, float total) { gathered.join(row, maximum, total); };
    const auto close = [&](int span, const float(&acc)[groups][Shape::fragments][4]) {
      SPLICE_UNROLL
      for (int group = 0; group < groups; ++group) {
        const int upper = group * FRAGMENT_ROWS + thread_index() % WARP / 4;
        const Shares shares[2] = {gathered.shares(upper), gathered.shares(upper + 8)};
        SPLICE_UNROLL
        for (int fragment = 0; fragment < Shape::fragments; ++fragment) {
          Quad& sums = place[(group * Shape::fragments + fragment) * LATENT_THREADS];
          Quad all = {};
          if (span > 0) all = sums;
          SPLICE_UNROLL
          for (int i = 0; i < 4; ++i) all.value[i] = merged(all.value[i], acc[group][fragment][i], shares[i / 2]);
          if (span < last_span) {
            sums = all;
            continue;
          }
          SPLICE_UNROLL
          for (int half = 0; half < 2; ++half)
            if (first + static_cast<uint32_t>(upper + 8 * half) < rows.count)
              gathered.write(upper + 8 * half, fragment, all.value[2 * half], all.value[2 * half + 1]);
        }
      }
    };
    attend_latents<Shape, groups>(rows, first, shift, 0, tiles, end, halves, shared, fold, close);
  }
}

// How a launch is divided: rows a block takes, and halves of tiles it keeps.
struct Division {
  int groups, halves;
};

template <class Shape, int groups>
bool fits(const DeviceLimits& limits, Division& found, int wanted_halves) {
  const int64_t half = Shape::half_chunks * CHUNK_BYTES, own = sizeof(LatentShared<Shape, groups>);
  const int64_t room = (limits.shared_bytes - own) / half, most = wanted_halves ? wanted_halves : MAX_HALVES;
  found = {groups, static_cast<int>(room < most ? room : most)};
  return found.halves >= (wanted_halves ? wanted_halves : MIN_HALVES);
}

// What a tile of keys costs a block, in hundreds of cycles: estimated from the instructions it takes, not measured.
constexpr int64_t tile_cost(int groups) { return groups == 4 ? 59 : groups == 2 ? 36 : 23; }

// Of the row tiles that fit, the one whose blocks are through first if all of them take as long.
template <class Shape>
int divide(const char* name, const splice_cuda_latent_attention& args, int64_t spans, const DeviceLimits& limits, Division& chosen) {
  const int64_t rows = args.max_query * args.heads;
  int64_t least = 0;
  for (int groups = MAX_GROUPS; groups >= 1; groups /= 2) {
    const int64_t tile = groups * FRAGMENT_ROWS, blocks = (rows + tile - 1) / tile * spans * args.sequences;
    const int64_t cost = (blocks + limits.multiprocessors - 1) / limits.multiprocessors * tile_cost(groups);
    if ((args.row_tile && args.row_tile != tile) || (least && cost >= least)) continue;
    Division found;
    const bool fitting = groups == 4   ? fits<Shape, 4>(limits, found, args.halves)
                         : groups == 2 ? fits<Shape, 2>(limits, found, args.halves)
                                       : fits<Shape, 1>(limits, found, args.halves);
    if (!fitting) continue;
    chosen = found;
    least = cost;
  }
  if (least) return SPLICE_CUDA_OK;
  return fail(SPLICE_CUDA_UNSUPPORTED, "%s: row_tile %d and halves %d do not fit the %lld bytes of shared memory a block may have here", name,
              args.row_tile, args.halves, static_cast<long long>(limits.shared_bytes));
}

template <class Shape, int groups>
int decode(const splice_cuda_latent_attention& args, int64_t spans, int halves, void* stream) {
  const int64_t tile = groups * FRAGMENT_ROWS;
  const GridSize grid{(args.max_query * args.heads + tile - 1) / tile, spans, args.sequences};
  const size_t bytes = sizeof(LatentShared<Shape, groups>) + static_cast<size_t>(halves) * Shape::half_chunks * CHUNK_BYTES;
  return launch("latent_decode", attend_latent_span<Shape, groups>, grid, LATENT_THREADS, bytes, stream, args,
                block_shift(args.cache.block_tokens), halves, spans);
}

template <class Shape, int groups>
int prefill(const splice_cuda_latent_attention& args, const DeviceLimits& limits, int halves, void* stream) {
  const int64_t tile = groups * FRAGMENT_ROWS, items = (args.max_query * args.heads + tile - 1) / tile * args.sequences;
  const size_t bytes = sizeof(LatentShared<Shape, groups>) + static_cast<size_t>(halves) * Shape::half_chunks * CHUNK_BYTES;
  const GridSize grid{items < limits.multiprocessors ? items : limits.multiprocessors};
  return launch("latent_prefill", attend_latent_rows<Shape, groups>, grid, LATENT_THREADS, bytes, stream, args,
                block_shift(args.cache.block_tokens), halves, items);
}

template <class Shape>
int decode(const splice_cuda_latent_attention& args, const DeviceLimits& limits, void* stream) {
  const int64_t spans = spans_of(args.max_context);
  Division division;
  int code = divide<Shape>("latent_decode", args, spans, limits, division);
  if (code != SPLICE_CUDA_OK) return code;
  switch (division.groups) {
    case 4: code = decode<Shape, 4>(args, spans, division.halves, stream); break;
    case 2: code = decode<Shape, 2>(args, spans, division.halves, stream); break;
    default: code = decode<Shape, 1>(args, spans, division.halves, stream);
  }
  if (code != SPLICE_CUDA_OK || spans == 1) return code;
  return launch("latent_decode", join_latent_spans<Shape>, {args.rows * args.heads}, Shape::rank / 4, 0, stream, args, spans);
}

template <class Shape>
int prefill(const splice_cuda_latent_attention& args, const DeviceLimits& limits, void* stream) {
  Division division;
  const int code = divide<Shape>("latent_prefill", args, 1, limits, division);
  if (code != SPLICE_CUDA_OK) return code;
  switch (division.groups) {
    case 4: return prefill<Shape, 4>(args, limits, division.halves, stream);
    case 2: return prefill<Shape, 2>(args, limits, division.halves, stream);
    default: return prefill<Shape, 1>(args, limits, division.halves, stream);
  }
}

int check(const char* name, const splice_cuda_latent_attention& args, int64_t workspace) {
  if (args.halves && (args.halves < MIN_HALVES || args.halves > MAX_HALVES))
    return fail(SPLICE_CUDA_INVALID, "%s: halves %d, expected 0 or 2 to 4", name, args.halves);
  return check_latents(name, args, workspace);
}

}  // namespace
}  // namespace splice::cuda

extern "C" {

int64_t splice_cuda_latent_decode_workspace(int64_t rows, int64_t heads, int64_t rank, int64_t max_context) {
  return splice::cuda::decode_workspace(rows, heads, rank, max_context);
}

int64_t splice_cuda_latent_prefill_workspace(int64_t rank, int64_t max_context) { return splice::cuda::prefill_workspace(rank, max_context); }

int splice_cuda_latent_decode(const splice_cuda_latent_attention* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows == 0) return SPLICE_CUDA_OK;
  int code = check("latent_decode", *args, decode_workspace(args->rows, args->heads, args->cache.rank, args->max_context));
  DeviceLimits limits;
  if (code == SPLICE_CUDA_OK) code = read_limits("latent_decode", limits);
  if (code != SPLICE_CUDA_OK) return code;
  return with_latent_shape("latent_decode", args->cache, [&](auto shape) { return decode<decltype(shape)>(*args, limits, stream); });
}

int splice_cuda_latent_prefill(const splice_cuda_latent_attention* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows == 0) return SPLICE_CUDA_OK;
  int code = check("latent_prefill", *args, prefill_workspace(args->cache.rank, args->max_context));
  DeviceLimits limits;
  if (code == SPLICE_CUDA_OK) code = read_limits("latent_prefill", limits);
  if (code != SPLICE_CUDA_OK) return code;
  return with_latent_shape("latent_prefill", args->cache, [&](auto shape) { return prefill<decltype(shape)>(*args, limits, stream); });
}

}  // extern "C"
