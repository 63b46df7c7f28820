"""Ragged paged batches for the kernel tests, and attention in float64 to hold against."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PagedBatch:
    q: torch.Tensor
    kv_cache: torch.Tensor
    block_tables: torch.Tensor
    query_starts: torch.Tensor
    starts: torch.Tensor


def make_batch(
    lengths: list[tuple[int, int]],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_tokens: int = 32,
    dtype: torch.dtype = torch.float32,
    num_layers: int = 2,
    seed: int = 0,
) -> PagedBatch:
    """`lengths`: (start, queries) of each sequence. Blocks are scattered; places nobody owns are NaN."""
    generator = torch.Generator().manual_seed(seed)
    blocks_of = [-(-(start + queries) // block_tokens) for start, queries in lengths]
    num_blocks = sum(blocks_of) + 2
    order = torch.randperm(num_blocks, generator=generator).tolist()
    cache = torch.full((num_blocks, num_layers, 2, kv_heads, block_tokens, head_dim), float("nan")).to(dtype)
    tables = torch.zeros(len(lengths), max(blocks_of, default=0), dtype=torch.int32)
    for row, (start, queries) in enumerate(lengths):
        taken = [order.pop() for _ in range(blocks_of[row])]
        tables[row, : len(taken)] = torch.tensor(taken, dtype=torch.int32)
        for position in range(start + queries):
            place = cache[taken[position // block_tokens], :, :, :, position % block_tokens]
            place.copy_(torch.randn(place.shape, generator=generator))
    query_starts = torch.tensor([0, *[queries for _, queries in lengths]]).cumsum(0).to(torch.int32)
    rows = int(query_starts[-1])
    return PagedBatch(
        q=torch.randn(rows, heads, head_dim, generator=generator),
        kv_cache=cache,
        block_tables=tables,
        query_starts=query_starts,
        starts=torch.tensor([start for start, _ in lengths], dtype=torch.int32),
    )


def attention_float64(
    batch: PagedBatch,
    layer: int,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention, one query and head at a time, in float64."""
    cache = batch.kv_cache[:, layer].double()
    block_tokens = cache.shape[3]
    group = batch.q.shape[1] // cache.shape[2]
    out = torch.empty(batch.q.shape, dtype=torch.float64)
    bounds = batch.query_starts.tolist()
    for sequence, start in enumerate(batch.starts.tolist()):
        for row in range(bounds[sequence], bounds[sequence + 1]):
            seen = start + row - bounds[sequence] + 1
            visible = range(0 if window is None else max(0, seen - window), seen)
            places = [(int(batch.block_tables[sequence, p // block_tokens]), p % block_tokens) for p in visible]
            for head in range(batch.q.shape[1]):
                keys = torch.stack([cache[b, 0, head // group, o] for b, o in places])
                values = torch.stack([cache[b, 1, head // group, o] for b, o in places])
                scores = keys @ batch.q[row, head].double() * scale
                if softcap is not None:
                    scores = softcap * (scores / softcap).tanh()
                if sinks is not None:
                    scores = torch.cat([scores, sinks[head : head + 1].double()])
                weights = scores.softmax(0)
                out[row, head] = weights[: len(values)] @ values
    return out
