// Paged causal attention of many query rows on Hopper, by products of warpgroups. Compiled for sm_90; not yet run on a GPU.
//
// Does 4·head_dim operations a row and visible key on the matrix units, and a special function and some seven others beside them. Reads
// queries once, and each tile of 64 keys and values once for 128 query rows (heads of a group × tokens): 128 operations a byte, from the
// second-level cache mostly. Bound by the matrix units. Of head_dim 128, a tile takes them 1024 cycles with 128 rows. Meanwhile products
// read 64 bytes a cycle from shared memory, of 128, and copies bring 32, of some 40 that the second-level cache gives; each quarter of
// the multiprocessor is busy with special functions for 512 cycles, and issues some 730 instructions for rows and 240 for copies.
//
// A block is three warpgroups and takes 128 rows of one KV head. One copies: keys and values of a tile have places of their own in a
// ring and are given back apart, through barriers in shared memory. Copies are those of single threads, since what a tensor map gives for
// keys past the last is whatever the cache holds there, and not zeros. The others take 64 rows each and all tiles of the block: a tile
// that none of a row's keys is in changes no bit of it. Queries stay in registers, and so do weights, as left operands.
//
// Products of queries with the next keys and of weights with these values are issued together. While the second is under way, the
// results of the first become weights; while they become weights, the other warpgroup has the matrix units: the two take turns to issue.
// A row is computed as in decode_attention.cu, but by other instructions: whether these round alike is a question to the GPU
// (engine/ops/cuda/attention_kernels.py). In the emulator they do, and bits are equal.
#include "gathered_rows.h"
#include "warpgroup.h"

namespace splice::cuda {
namespace {

constexpr int GROUPS = 2, GROUP_ROWS = 64, BLOCK_ROWS = GROUPS * GROUP_ROWS, THREADS = (GROUPS + 1) * WARPGROUP;
// Places in the ring; how many tiles are copied before the first of them is announced. While the place for the next is not free, all
// that is being multiplied and the tile after it must have been announced: LOADING is at most STAGES - 2.
constexpr int STAGES = 6, LOADING = 2;
constexpr int PANEL_CHUNKS_OF_TILE = TILE_KEYS * PANEL_CHUNKS;

template <int head_dim>
constexpr int PANELS = (head_dim + PANEL_COLUMNS - 1) / PANEL_COLUMNS;

// Tiles of keys, or of values: panels of 64 dimensions.
template <int head_dim>
struct Ring {
  Chunk panels[STAGES][PANELS<head_dim>][PANEL_CHUNKS_OF_TILE];
};
struct RingBarriers {
  SharedBarrier full[STAGES], empty[STAGES];
};

template <int head_dim>
struct Shared {
  Ring<head_dim> keys, values;
  RingBarriers of_keys, of_values;
};

// Where somebody is in a ring.
struct Turn {
  int stage = 0, parity = 0;

  SPLICE_DEVICE void advance() {
    if (++stage < STAGES) return;
    stage = 0;
    parity ^= 1;
  }
};

// What a block computes.
struct Work {
  QueryRows rows;
  uint32_t first_row;
  int begin, tiles, end;  // of tiles, and of keys
};

// Copies the block's tiles. A thread has one chunk of every few rows, and knows the blocks of a tile before it starts on it.
template <int head_dim>
SPLICE_DEVICE void load_tiles(const Work& work, int64_t sequence, int shift, Shared<head_dim>& shared) {
  constexpr int chunks = head_dim / CHUNK_ELEMENTS, threads_a_row = chunks > 8 ? 16 : 8, rows_at_once = WARPGROUP / threads_a_row;
  constexpr int parts = 4, part_keys = TILE_KEYS / parts;  // no block has fewer keys
  const splice_cuda_attention& args = work.rows.args;
  const int thread = thread_index() % WARPGROUP, chunk = thread % threads_a_row, first = thread / threads_a_row;
  const bool copies = chunk < chunks;
  const int place = chunk / PANEL_CHUNKS * PANEL_CHUNKS_OF_TILE + panel_place(first, chunk % PANEL_CHUNKS);
  const int32_t* table = args.block_tables + sequence * args.table_stride;
  const int64_t plane = args.kv.kv_heads * args.kv.block_tokens * chunks, block = args.kv.layers * 2 * plane;
  const Chunk* start = reinterpret_cast<const Chunk*>(kv_plane(args.kv, args.layer, 0, 0, work.rows.kv_head)) + first * chunks + chunk;

  const Chunk* parts_of_tile[parts];  // this thread's first chunk of each
  const auto find_tile = [&](int tile) {
    SPLICE_UNROLL
    for (int part = 0; part < parts; ++part) {
      const int key = tile * TILE_KEYS + part * part_keys;
      parts_of_tile[part] = start + (key < work.end ? table[key >> shift] : 0) * block + (key & ((1 << shift) - 1)) * chunks;
    }
  };
  const auto start_tile = [&](int tile, int64_t further, Chunk* to) {
    const int keys = work.end - tile * TILE_KEYS - first;
    SPLICE_UNROLL
    for (int row = 0; row < TILE_KEYS; row += rows_at_once) {
      const Chunk* from = parts_of_tile[row / part_keys] + further + row % part_keys * chunks;
      if (copies) start_copy(to + place + row * PANEL_CHUNKS, from, row < keys);
    }
    close_copies();
  };
  Turn loaded, announced;
  const auto announce = [&] {
    publish_shared();
    shared.of_keys.full[announced.stage].arrive_warp();
    shared.of_values.full[announced.stage].arrive_warp();
    announced.advance();
  };

  find_tile(work.begin);
  for (int tile = work.begin; tile < work.tiles; ++tile) {
    if (tile - work.begin >= LOADING) {
      wait_copies<2 * (LOADING - 1)>();
      announce();
    }
    if (tile - work.begin >= STAGES) shared.of_keys.empty[loaded.stage].wait(loaded.parity ^ 1);
    start_tile(tile, 0, shared.keys.panels[loaded.stage][0]);
    if (tile - work.begin >= STAGES) shared.of_values.empty[loaded.stage].wait(loaded.parity ^ 1);
    start_tile(tile, plane, shared.values.panels[loaded.stage][0]);
    loaded.advance();
    find_tile(tile + 1);
  }
  wait_copies<0>();
  for (int i = work.tiles - work.begin < LOADING ? work.tiles - work.begin : LOADING; i > 0; --i) announce();
}

// A warpgroup's rows.
template <int head_dim>
struct Rows {
  static constexpr int fragments = head_dim / FRAGMENT_COLUMNS, steps = head_dim / 16, panel_bytes = PANEL_CHUNKS_OF_TILE * CHUNK_BYTES;
  uint32_t queries[steps][4];
  float scores[TILE_COLUMNS][4], acc[fragments][4];
  uint32_t weights[TILE_STEPS][4];

  SPLICE_DEVICE void read_queries(const QueryRows& rows, uint32_t first_row) {
    const int lane = thread_index() % WARP;
    SPLICE_UNROLL
    for (int row = 0; row < 2; ++row) {
      const uint32_t query = first_row + lane / 4 + 8 * row;
      const bool valid = query < rows.count;
      const auto* from = static_cast<const uint32_t*>(rows.args.q) + (valid ? rows.place(query) : 0) * (head_dim / 2) + lane % 4;
      SPLICE_UNROLL
      for (int i = 0; i < 2 * steps; ++i) queries[i / 2][i % 2 * 2 + row] = valid ? from[4 * i] : 0;
    }
  }

  // Scores of a tile's keys, when they are done.
  SPLICE_DEVICE void multiply_keys(const Chunk (&keys)[PANELS<head_dim>][PANEL_CHUNKS_OF_TILE]) {
    hold(scores);
    open_products();
    SPLICE_UNROLL
    for (int step = 0; step < steps; ++step) multiply_group<TILE_KEYS>(scores, queries[step], rows_in(keys[step / 4], step % 4), step > 0);
    close_products();
  }

  // A tile's weighted values, added to those of the span's tiles before it unless it is the first.
  SPLICE_DEVICE void multiply_values(const Chunk (&values)[PANELS<head_dim>][PANEL_CHUNKS_OF_TILE], bool is_first) {
    hold(acc);
    open_products();
    SPLICE_UNROLL
    for (int step = 0; step < TILE_STEPS; ++step)
      multiply_group<head_dim, true>(acc, weights[step], columns_in(values[0], step, panel_bytes), step > 0 || !is_first);
    close_products();
  }
};

template <int head_dim>
SPLICE_DEVICE void attend_tiles(const Work& work, Shared<head_dim>& shared) {
  const splice_cuda_attention& args = work.rows.args;
  const int group = thread_index() / WARPGROUP - 1, warp = thread_index() % WARPGROUP / WARP, lane = thread_index() % WARP;
  const uint32_t own_row = work.first_row + group * GROUP_ROWS + warp * FRAGMENT_ROWS;
  const Sight sight[2] = {{work.rows, own_row + lane / 4}, {work.rows, own_row + lane / 4 + 8}};
  const Scoring scoring(args);

  Rows<head_dim> own;
  own.read_queries(work.rows, own_row);
  Gathered<Rows<head_dim>::fragments> gathered;
  RowState state;
  float rescale[2];
  const auto soften_tile = [&](int tile) {
    soften(scoring, tile * TILE_KEYS, sight, own.scores, state, rescale);
  };
  const auto begins_span = [&](int tile) { return tile == work.begin || tile % SPAN_TILES == 0; };

  if (group != 0 && work.begin + 1 < work.tiles) arrive_at(1, GROUPS * WARPGROUP);
  Turn at_keys, at_values;
  shared.of_keys.full[0].wait(0);
  own.multiply_keys(shared.keys.panels[0]);
  wait_products<0>();
  hold(own.scores);
  shared.of_keys.empty[0].arrive_warp();
  at_keys.advance();
  soften_tile(work.begin);
  pack_weights(own.scores, own.weights);

  for (int tile = work.begin + 1; tile < work.tiles; ++tile) {
    shared.of_keys.full[at_keys.stage].wait(at_keys.parity);
    shared.of_values.full[at_values.stage].wait(at_values.parity);
    barrier_of(1 + group, GROUPS * WARPGROUP);  // until the other warpgroup has issued its products
    own.multiply_keys(shared.keys.panels[at_keys.stage]);
    own.multiply_values(shared.values.panels[at_values.stage], begins_span(tile - 1));
    if (group == 0 || tile + 1 < work.tiles) arrive_at(2 - group, GROUPS * WARPGROUP);
    wait_products<1>();
    hold(own.scores);
    shared.of_keys.empty[at_keys.stage].arrive_warp();
    at_keys.advance();
    Shares shares[2];
    const bool begins = begins_span(tile);
    if (begins) gathered.close_span(state, shares);
    soften_tile(tile);
    // Each branch waits for itself: a wait that does not follow a branch, the compiler would move before the softening.
    if (begins) {
      wait_products<0>();
      hold(own.acc);
      gathered.add(own.acc, shares);
    } else {
      wait_products<0>();
      hold(own.acc);
      SPLICE_UNROLL
      for (int i = 0; i < 4 * Rows<head_dim>::fragments; ++i) own.acc[i / 4][i % 4] = product(own.acc[i / 4][i % 4], rescale[i % 4 / 2]);
    }
    shared.of_values.empty[at_values.stage].arrive_warp();
    at_values.advance();
    pack_weights(own.scores, own.weights);
  }
  shared.of_values.full[at_values.stage].wait(at_values.parity);
  own.multiply_values(shared.values.panels[at_values.stage], begins_span(work.tiles - 1));
  wait_products<0>();
  hold(own.acc);
  Shares shares[2];
  gathered.close_span(state, shares);
  gathered.add(own.acc, shares);
  gathered.template write<head_dim>(work.rows, own_row, 0);
}

// Block (x, y, z): the x-th last rows of KV head y and sequence z; those that see most go first.
template <int head_dim>
SPLICE_KERNEL __launch_bounds__(THREADS, 1) attend_rows(splice_cuda_attention args, int shift) {
  auto& shared = *reinterpret_cast<Shared<head_dim>*>(shared_memory());
  const QueryRows rows(args, block_z(), static_cast<uint32_t>(block_y()));
  const uint32_t first_row = static_cast<uint32_t>(grid_x() - 1 - block_x()) * BLOCK_ROWS;
  if (first_row >= rows.count) return;
  const int end = Sight(rows, first_row + BLOCK_ROWS - 1).high;
  const Work work{rows, first_row, Sight(rows, first_row).low / TILE_KEYS, (end + TILE_KEYS - 1) / TILE_KEYS, end};
  if (thread_index() == 0) {
    for (RingBarriers* barriers : {&shared.of_keys, &shared.of_values}) {
      for (int stage = 0; stage < STAGES; ++stage) {
        barriers->full[stage].begin(WARPGROUP / WARP);
        barriers->empty[stage].begin(GROUPS * WARPGROUP / WARP);
      }
    }
  }
  barrier();
  if (thread_index() < WARPGROUP) {
    give_registers<40>();
    load_tiles<head_dim>(work, block_z(), shift, shared);
  } else {
    take_registers<232>();
    attend_tiles<head_dim>(work, shared);
  }
}

template <int head_dim>
int attend(const splice_cuda_attention& args, void* stream) {
  const int64_t rows = args.max_query * (args.q_heads / args.kv.kv_heads);
  const GridSize grid{(rows + BLOCK_ROWS - 1) / BLOCK_ROWS, args.kv.kv_heads, args.sequences};
  return launch("prefill_attention_sm90", attend_rows<head_dim>, grid, THREADS, sizeof(Shared<head_dim>), stream, args,
                block_shift(args.kv.block_tokens));
}

}  // namespace
}  // namespace splice::cuda

extern "C" int splice_cuda_prefill_attention_sm90(const splice_cuda_attention* args, void* stream) {
  using namespace splice::cuda;
  if (args->rows == 0) return SPLICE_CUDA_OK;
  const int code = check_attention("prefill_attention_sm90", *args);
  if (code != SPLICE_CUDA_OK) return code;
  switch (args->kv.head_dim) {
    case 64: return attend<64>(*args, stream);
    case 80: return attend<80>(*args, stream);
    case 96: return attend<96>(*args, stream);
    case 128: return attend<128>(*args, stream);
    default:
      return fail(SPLICE_CUDA_UNSUPPORTED, "prefill_attention_sm90: head_dim %lld, expected 64, 80, 96 or 128",
                  static_cast<long long>(args->kv.head_dim));
  }
}
