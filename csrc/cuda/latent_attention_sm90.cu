// Paged causal attention over latents on Hopper, for few query rows a sequence and for many: the products of latent_attention.cu by
// wgmma, with a row's every operation in the same order. Compiled for sm_90; not yet run on a GPU.
//
// Moves and does what latent_attention.cu does: 2·(rank + rope) bytes a key for every block of 64 rows, of which one comes from memory
// and the others from the second-level cache; 4·rank + 2·rope operations a row and key, 242 a byte of memory at 128 heads of 512 + 64.
//
// A block has 64 rows (heads × tokens), all the shared memory there is, and 384 threads:
// - a warpgroup loads: the rows once, and tiles of 64 keys into two stages of 72 KiB, each filled by threads of its own while the
//   block computes on the other;
// - the first that computes makes a tile's scores, one chain over the whole width, and its weights. These stay in its registers for
//   its own half of the values' columns and go to shared memory for
// - the second, which multiplies the other half. Values are the keys that are there already: no byte is read twice.
// Blocks go through items one after another, and load an item's beginning while they finish the one before. Decode's items are spans of
// keys, whose parts a second kernel joins; prefill's walk all spans, with sums in a place of each block's own between two of them.
//
// A tile's products take 2,176 cycles of the matrix units: 36 of 64×64×16, 8 of 64×256×16. Scores read 4 KiB of shared memory every 32
// cycles, all there is, and share that with what is loaded: some 1,400 cycles rather than 1,152. Until half of the weights are there,
// some 400 cycles, nothing is multiplied: the scores of the next tile would need it in shared memory while this one is still in use,
// and with room for two nothing would be loaded meanwhile. In all some 2,900 cycles, of which products are three quarters. From 128 heads
// on that is 72 KiB for every 2,900 cycles of a multiprocessor, 5 to 6 TB/s from the second-level cache, which is the next bound. At 16
// heads a tile comes from memory in some 3,900 cycles (4.3 TB/s among 132) and memory bounds, with 72 KiB and more under way.
#include "latent_groups.h"

namespace splice::cuda {
namespace {

// What the blocks of a grid of any width do, one item after another: a sequence's 64 rows over one span of keys (`split`) or over all.
// Items of one span stand together, row tiles first, so that blocks that read the same keys do so at once; without `split` the last
// row tiles come first, since they see most.
template <bool split>
struct Work {
  const splice_cuda_latent_attention& args;
  uint32_t items, row_tiles;

  // each(rows, first row, first tile, tile beyond the last, position beyond the last), in all of a block's threads alike.
  template <class Each>
  SPLICE_DEVICE void walk(const Each& each) const {
    const auto sequences = static_cast<uint32_t>(args.sequences);
    for (auto item = static_cast<uint32_t>(block_x()); item < items; item += static_cast<uint32_t>(grid_x())) {
      const uint32_t others = split ? item / row_tiles : item, row_tile = split ? item % row_tiles : (items - 1 - item) / sequences;
      const uint32_t span = split ? others / sequences : 0, first = row_tile * GROUP_ROWS;
      const LatentRows rows(args, others % sequences);
      if (first >= rows.count) continue;
      const int end = rows.end(rows.count - first < GROUP_ROWS ? rows.count - 1 : first + GROUP_ROWS - 1);
      const int tiles = (end + TILE_KEYS - 1) / TILE_KEYS, first_tile = static_cast<int>(span) * LATENT_SPAN_TILES;
      if (first_tile >= tiles) continue;
      each(rows, first, first_tile, split && first_tile + LATENT_SPAN_TILES < tiles ? first_tile + LATENT_SPAN_TILES : tiles, end);
    }
  }
};

// The threads that load: a half for each stage, so that one waits for what it has under way while the other waits for room.
template <class Shape, class Items>
SPLICE_DEVICE void load_panels(const Items& work, int shift, LatentPanels<Shape>& shared) {
  const int stage = from_lane(thread_index() % LOADING / STAGE_THREADS, 0);
  int round = 0, items = 0, tiles = 0;
  work.walk([&](const LatentRows& rows, uint32_t first, int first_tile, int last_tile, int end) {
    KeyRows<Shape> keys{rows, shift, end, 0, {}};
    shared.queries_empty.wait((items++ & 1) ^ 1);
    start_query_panels<Shape>(rows, first, shared);
    close_copies();
    bool queries_shown = false;
    for (int tile = first_tile + ((tiles ^ stage) & 1); tile < last_tile || !queries_shown; tile += STAGES) {
      if (tile < last_tile) {
        keys.find(tile);
        shared.empty[stage].wait((round & 1) ^ 1);
        keys.start(shared.keys[stage][0]);
      }
      close_copies();
      if (!queries_shown) {
        wait_copies<1>();
        publish_shared();
        shared.queries_full.arrive();
        queries_shown = true;
      }
      if (tile >= last_tile) break;
      wait_copies<0>();
      publish_shared();
      shared.full[stage].arrive();
      ++round;
    }
    tiles += last_tile - first_tile;
  });
  wait_copies<0>();
}

// A span's tiles in the first warpgroup: scores, weights, and the first half of the weighted values. `tiles` counts those of the block.
template <class Shape>
SPLICE_DEVICE void attend_span_first(LatentPanels<Shape>& shared, const int (&ends)[2], float factor, int first_tile, int beyond, int last_tile,
                                     int& tiles, GroupScores& state, float (&acc)[LatentPanels<Shape>::fragments][4]) {
  using Panels = LatentPanels<Shape>;
  for (int tile = first_tile; tile < beyond; ++tile, ++tiles) {
    const int stage = tiles & 1;
    Chunk* keys = shared.keys[stage][0];
    float scores[TILE_COLUMNS][4];
    shared.full[stage].wait(tiles >> 1 & 1);
    hold(scores);
    open_products();
    SPLICE_UNROLL
    for (int step = 0; step < Shape::width / 16; ++step)
      multiply_group<TILE_KEYS>(scores, rows_over(shared.queries[0], step), rows_over(keys, step), step > 0);
    close_products();
    wait_products<0>();
    hold(scores);
    if (tile == last_tile - 1) shared.queries_empty.arrive_warp();

    int seen[2];
    float rescale[2];
    SPLICE_UNROLL
    for (int i = 0; i < 2; ++i) seen[i] = ends[i] - tile * TILE_KEYS;
    state.scale(factor, seen, scores, rescale);
    if (thread_index() % 4 == 0) {
      shared.rescale[stage][group_row(0)] = rescale[0];
      shared.rescale[stage][group_row(1)] = rescale[1];
    }
    rescale_rows(acc, rescale);

    Chunk* room = keys + Panels::last * PANEL;
    const int row = thread_index() % WARPGROUP / WARP * FRAGMENT_ROWS + thread_index() % 16, odd = thread_index() % WARP / 16;
    uint32_t weights[KEY_PARTS][4];
    barrier_of(SCORES_BARRIER, WARPGROUP);  // every warp has its scores: nobody reads the rotated part any more
    hold(acc);
    SPLICE_UNROLL
    for (int piece = 0; piece < PIECES; ++piece) {
      SPLICE_UNROLL
      for (int part = piece * KEY_PARTS / PIECES; part < (piece + 1) * KEY_PARTS / PIECES; ++part) {
        state.soften(part, scores, weights[part]);
        store_matrices(room + panel_place(row, 2 * part + odd), weights[part]);
      }
      publish_shared();
      arrive_at(WEIGHTS_BARRIER + stage * PIECES + piece, COMPUTING);
      open_products();
      SPLICE_UNROLL
      for (int part = piece * KEY_PARTS / PIECES; part < (piece + 1) * KEY_PARTS / PIECES; ++part)
        multiply_group<Panels::columns, true>(acc, weights[part], columns_in(keys, part, PANEL * CHUNK_BYTES), true);
      close_products();
    }
    wait_products<0>();
    hold(acc);
    shared.empty[stage].arrive_warp();
  }
}

// The same tiles in the second: the other half.
template <class Shape>
SPLICE_DEVICE void attend_span_second(LatentPanels<Shape>& shared, int first_tile, int beyond, int& tiles,
                                      float (&acc)[LatentPanels<Shape>::fragments][4]) {
  using Panels = LatentPanels<Shape>;
  for (int tile = first_tile; tile < beyond; ++tile, ++tiles) {
    const int stage = tiles & 1;
    const Chunk *keys = shared.keys[stage][0], *room = keys + Panels::last * PANEL, *values = keys + Panels::columns / PANEL_COLUMNS * PANEL;
    shared.full[stage].wait(tiles >> 1 & 1);
    SPLICE_UNROLL
    for (int piece = 0; piece < PIECES; ++piece) {
      barrier_of(WEIGHTS_BARRIER + stage * PIECES + piece, COMPUTING);
      if (piece == 0) {
        const float rescale[2] = {shared.rescale[stage][group_row(0)], shared.rescale[stage][group_row(1)]};
        rescale_rows(acc, rescale);
        hold(acc);
      }
      open_products();
      SPLICE_UNROLL
      for (int part = piece * KEY_PARTS / PIECES; part < (piece + 1) * KEY_PARTS / PIECES; ++part)
        multiply_group<Panels::columns, true>(acc, rows_in(room, part), columns_in(values, part, PANEL * CHUNK_BYTES), true);
      close_products();
    }
    wait_products<0>();
    hold(acc);
    shared.empty[stage].arrive_warp();
  }
}

// Of its row, the first element that a thread has: of each fragment it has two neighbours.
template <class Shape>
SPLICE_DEVICE int first_column() {
  return thread_index() / WARPGROUP * LatentPanels<Shape>::columns + thread_index() % 4 * 2;
}

template <class Shape, bool split>
SPLICE_KERNEL __launch_bounds__(GROUP_THREADS, 1) attend_latents_by_groups(splice_cuda_latent_attention args, int shift, uint32_t items,
                                                                           uint32_t row_tiles, int64_t spans) {
  using Panels = LatentPanels<Shape>;
  auto& shared = *reinterpret_cast<Panels*>(shared_memory());
  const int group = from_lane(thread_index() / WARPGROUP, 0);
  const Work<split> work{args, items, row_tiles};
  if (thread_index() == 0) shared.begin();
  barrier();
  if (group == COMPUTING / WARPGROUP) {
    give_registers<LOADING_REGISTERS>();
    load_panels<Shape>(work, shift, shared);
    return;
  }
  take_registers<COMPUTING_REGISTERS>();
  const float factor = product(args.scale, LOG2_E);
  const Parts parts(args, spans);
  int tiles = 0, done = 0, taken = 0;  // of the block: tiles, spans, items
  work.walk([&](const LatentRows& rows, uint32_t first, int first_tile, int last_tile, int) {
    const uint32_t queries[2] = {first + static_cast<uint32_t>(group_row(0)), first + static_cast<uint32_t>(group_row(1))};
    // Rows past the last see what it sees, so that tiles are masked for nobody's sake; nobody keeps what comes of them.
    const bool real[2] = {queries[0] < rows.count, queries[1] < rows.count};
    const int ends[2] = {rows.end(real[0] ? queries[0] : rows.count - 1), rows.end(real[1] ? queries[1] : rows.count - 1)};
    float maximum[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, total[2] = {};
    if (group == 0) shared.queries_full.wait(taken++ & 1);
    for (int tile = first_tile; tile < last_tile; ++done) {
      const int span = tile / LATENT_SPAN_TILES, next = (span + 1) * LATENT_SPAN_TILES, beyond = next < last_tile ? next : last_tile;
      SpanEnd& shown = shared.ends[done & 1];
      float acc[Panels::fragments][4] = {};
      if (group == 0) {
        GroupScores state;
        attend_span_first<Shape>(shared, ends, factor, tile, beyond, last_tile, tiles, state, acc);
        SPLICE_UNROLL
        for (int i = 0; i < 2; ++i) {
          const float sum_of_span = state.sum_of(i);
          const Shares shares = joined(maximum[i], state.maximum[i]);
          maximum[i] = shares.maximum;
          total[i] = merged(total[i], sum_of_span, shares);
          if (thread_index() % 4) continue;
          shown.own[group_row(i)] = shares.own;
          shown.other[group_row(i)] = shares.other;
          shown.total[group_row(i)] = total[i];
          if (!split || !real[i] || ends[i] <= LATENT_SPAN_KEYS) continue;
          float* to = parts.sum_of(rows.place(queries[i]), span);
          to[0] = state.maximum[i];
          to[1] = sum_of_span;
        }
      } else {
        attend_span_second<Shape>(shared, tile, beyond, tiles, acc);
      }
      barrier_of(SPAN_BARRIER, COMPUTING);
      SPLICE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const Shares shares{0.0f, shown.own[group_row(i)], shown.other[group_row(i)]};
        const Quotients by(shown.total[group_row(i)]);
        if (split && !real[i]) continue;
        auto* out = reinterpret_cast<uint32_t*>(rows.out(real[i] ? queries[i] : 0) + first_column<Shape>());
        if (split && ends[i] > LATENT_SPAN_KEYS) {
          auto* to = reinterpret_cast<Pair*>(parts.accumulator(rows.place(queries[i]), span, Shape::rank) + first_column<Shape>());
          SPLICE_UNROLL
          for (int fragment = 0; fragment < Panels::fragments; ++fragment)
            to[fragment * FRAGMENT_COLUMNS / 2] = {acc[fragment][2 * i], acc[fragment][2 * i + 1]};
          continue;
        }
        // Sums over spans lie in a place of each block's own, in the order of its registers.
        const bool whole = split || beyond == last_tile;
        auto* place = static_cast<Pair*>(args.workspace) + (block_x() * 2 + i) * Panels::fragments * COMPUTING + thread_index();
        if (split && span > 0) continue;
        SPLICE_UNROLL
        for (int fragment = 0; fragment < Panels::fragments; ++fragment) {
          Pair all = {0.0f, 0.0f};
          if (!split && span > 0) all = place[fragment * COMPUTING];
          all = {merged(all.first, acc[fragment][2 * i], shares), merged(all.second, acc[fragment][2 * i + 1], shares)};
          if (!whole)
            place[fragment * COMPUTING] = all;
          else if (real[i])
            out[fragment * FRAGMENT_COLUMNS / 2] = to_bf16_pair(by(all.first), by(all.second));
        }
      }
      tile = beyond;
    }
  });
}

template <class Shape, bool split>
int attend(const char* name, const splice_cuda_latent_attention& args, void* stream) {
  DeviceLimits limits;
  if (const int code = read_limits(name, limits); code != SPLICE_CUDA_OK) return code;
  const int64_t spans = spans_of(args.max_context), row_tiles = (args.max_query * args.heads + GROUP_ROWS - 1) / GROUP_ROWS;
  const int64_t items = row_tiles * args.sequences * (split ? spans : 1);
  if (items >= int64_t{1} << 31)
    return fail(SPLICE_CUDA_UNSUPPORTED, "%s: %lld row tiles of %lld sequences over %lld spans, expected fewer than 2^31 in all", name,
                static_cast<long long>(row_tiles), static_cast<long long>(args.sequences), static_cast<long long>(spans));
  const int code = launch(name, attend_latents_by_groups<Shape, split>, {items < limits.multiprocessors ? items : limits.multiprocessors},
                          GROUP_THREADS, sizeof(LatentPanels<Shape>), stream, args, block_shift(args.cache.block_tokens), items, row_tiles, spans);
  if (code != SPLICE_CUDA_OK || !split || spans == 1) return code;
  return launch(name, join_latent_spans<Shape>, {args.rows * args.heads}, Shape::rank / 4, 0, stream, args, spans);
}

template <bool split>
int attend(const char* name, const splice_cuda_latent_attention& args, int64_t workspace, void* stream) {
  if ((args.row_tile && args.row_tile != GROUP_ROWS) || (args.halves && args.halves != 2 * STAGES))
    return fail(SPLICE_CUDA_INVALID, "%s: row_tile %d and halves %d, expected 0 or %d and 0 or %d", name, args.row_tile, args.halves, GROUP_ROWS,
                2 * STAGES);
  if (const int code = check_latents(name, args, workspace); code != SPLICE_CUDA_OK) return code;
  return with_latent_shape(name, args.cache, [&](auto shape) { return attend<decltype(shape), split>(name, args, stream); });
}

}  // namespace
}  // namespace splice::cuda

extern "C" {

int splice_cuda_latent_sm90_decode(const splice_cuda_latent_attention* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows == 0) return SPLICE_CUDA_OK;
  return attend<true>("latent_sm90_decode", *args, decode_workspace(args->rows, args->heads, args->cache.rank, args->max_context), stream);
}

int splice_cuda_latent_sm90_prefill(const splice_cuda_latent_attention* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows == 0) return SPLICE_CUDA_OK;
  return attend<false>("latent_sm90_prefill", *args, prefill_workspace(args->cache.rank, args->max_context), stream);
}

}  // extern "C"
