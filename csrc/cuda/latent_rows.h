// Rows of queries over latents and rows of the cache: which they are, where they lie, and how they come into shared memory.
#pragma once

#include "attention_tile.h"

namespace splice::cuda {

constexpr int LATENT_SPAN_KEYS = 1024, LATENT_SPAN_TILES = LATENT_SPAN_KEYS / TILE_KEYS, PART_KEYS = 16;
constexpr int KEY_PARTS = TILE_KEYS / PART_KEYS, HALF_KEYS = TILE_KEYS / 2;  // a half of a tile is what is loaded at a time
constexpr int LATENT_WARPS = 8, LATENT_THREADS = LATENT_WARPS * WARP;
constexpr int MIN_HALVES = 2, MAX_HALVES = 4;

template <int rank_, int rope_>
struct LatentShape {
  static constexpr int rank = rank_, width = rank_ + rope_, chunks = width / CHUNK_ELEMENTS;
  static constexpr int row_chunks = ROW_CHUNKS<width>;                      // in shared memory
  static constexpr int fragments = rank / FRAGMENT_COLUMNS / LATENT_WARPS;  // of values, a warp
  static constexpr int half_chunks = HALF_KEYS * row_chunks;
  static_assert(width % 16 == 0 && rank % LATENT_WARPS == 0 && (fragments == 4 || fragments == 8));
};

// Query row r of a sequence is token r / heads, head r mod heads.
struct LatentRows {
  const splice_cuda_latent_attention& args;
  int64_t first_row;
  int start;
  uint32_t count, heads;
  const int32_t* blocks;

  SPLICE_DEVICE LatentRows(const splice_cuda_latent_attention& a, int64_t sequence)
      : args(a), first_row(a.query_starts[sequence]), start(a.starts[sequence]),
        count(static_cast<uint32_t>((a.query_starts[sequence + 1] - first_row) * a.heads)), heads(static_cast<uint32_t>(a.heads)),
        blocks(a.block_tables + sequence * a.table_stride) {}

  // One past the last position that a row sees; of rows past the last, 0.
  SPLICE_DEVICE int end(uint32_t row) const { return row < count ? start + static_cast<int>(row / heads) + 1 : 0; }
  SPLICE_DEVICE int64_t token(uint32_t row) const { return first_row + row / heads; }
  SPLICE_DEVICE int64_t place(uint32_t row) const { return token(row) * heads + row % heads; }
  SPLICE_DEVICE uint16_t* out(uint32_t row) const {
    return static_cast<uint16_t*>(args.out) + token(row) * args.out_row_stride + row % heads * args.out_head_stride;
  }
};

SPLICE_BOTH const uint16_t* latent_row(const splice_cuda_latents& cache, int64_t layer, int64_t block, int64_t offset) {
  const int64_t rows = (block * cache.layers + layer) * cache.block_tokens + offset;
  return static_cast<const uint16_t*>(cache.data) + rows * (cache.rank + cache.rope);
}

// Starts copies of query rows first…first + count into shared memory, [absorbed | rotated]; rows past the last are zeros.
template <class Shape>
SPLICE_DEVICE void start_latent_queries(const LatentRows& rows, uint32_t first, int count, Chunk* to) {
  constexpr int latent_chunks = Shape::rank / CHUNK_ELEMENTS;
  const splice_cuda_latent_attention& args = rows.args;
  for (int i = thread_index(); i < count * Shape::chunks; i += block_threads()) {
    const int at = i / Shape::chunks, chunk = i % Shape::chunks;
    const uint32_t row = first + static_cast<uint32_t>(at), head = row % rows.heads;
    const bool valid = row < rows.count;
    const auto* from = static_cast<const uint16_t*>(args.absorbed);
    if (valid && chunk < latent_chunks)
      from += rows.token(row) * args.absorbed_row_stride + head * args.absorbed_head_stride + chunk * CHUNK_ELEMENTS;
    else if (valid)
      from = static_cast<const uint16_t*>(args.rotated) + rows.token(row) * args.rotated_row_stride + head * args.rotated_head_stride +
             (chunk - latent_chunks) * CHUNK_ELEMENTS;
    start_copy(to + chunk_place<Shape::width>(at, chunk), from, valid);
  }
}

// Starts copies of 32 positions; from `end` on they are zeros: what the cache holds there is never read. A warp takes four neighbouring
// rows, which are one block's and lie one behind another: it looks up one block, and places are a constant apart.
template <class Shape>
SPLICE_DEVICE void start_half(const LatentRows& rows, int shift, int half, int end, Chunk* to) {
  constexpr int own_rows = HALF_KEYS / LATENT_WARPS, wide = Shape::chunks / WARP * WARP, rest = Shape::chunks - wide;
  static_assert(16 % own_rows == 0 && rest * own_rows <= WARP);
  const splice_cuda_latents& cache = rows.args.cache;
  const int lane = thread_index() % WARP, first = thread_index() / WARP * own_rows, key = half * HALF_KEYS + first;
  const auto* from = static_cast<const Chunk*>(cache.data);
  if (key < end) from = reinterpret_cast<const Chunk*>(latent_row(cache, rows.args.layer, rows.blocks[key >> shift], key & ((1 << shift) - 1)));
  SPLICE_UNROLL
  for (int row = 0; row < own_rows; ++row) {
    SPLICE_UNROLL
    for (int chunk = 0; chunk < wide; chunk += WARP)
      start_copy(to + chunk_place<Shape::width>(first + row, chunk + lane), from + row * Shape::chunks + chunk + lane, key + row < end);
  }
  // What is left of all four rows is one copy of the warp.
  const int row = lane / rest, chunk = wide + lane % rest;
  if (row < own_rows) start_copy(to + chunk_place<Shape::width>(first + row, chunk), from + row * Shape::chunks + chunk, key + row < end);
}

}  // namespace splice::cuda
