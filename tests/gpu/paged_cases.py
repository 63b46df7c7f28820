"""Sequences of query rows over a paged cache whose unused places are NaN, and exact attention over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.ops.cuda.attention import PagedRows, Scores


@dataclass(frozen=True, slots=True)
class PagedCase:
    q: torch.Tensor
    cache: torch.Tensor
    rows: PagedRows
    parts: tuple[tuple[int, int], ...]
    """(start, rows) of each sequence."""

    def alone(self, sequence: int, first: int, count: int) -> PagedCase:
        """So many rows of one sequence, from its `first` on, by themselves."""
        begin = sum(rows for _, rows in self.parts[:sequence]) + first
        start = self.parts[sequence][0] + first
        device = self.q.device
        return PagedCase(
            self.q[begin : begin + count].contiguous(),
            self.cache,
            PagedRows(
                self.rows.block_tables[sequence : sequence + 1].contiguous(),
                torch.tensor([0, count], dtype=torch.int32, device=device),
                torch.tensor([start], dtype=torch.int32, device=device),
                start + count,
                count,
            ),
            ((start, count),),
        )


def paged_case(
    parts: Sequence[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    device: torch.device,
    block_tokens: int = 32,
    seed: int = 0,
) -> PagedCase:
    """`parts` are (start, rows) of sequences, `heads` those of q and of KV. Layer 1 of 2 is the one that is filled."""
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-(start + rows) // block_tokens) for start, rows in parts]
    order = torch.randperm(sum(needed) + 2, generator=generator)
    tables = torch.zeros(len(parts), max(needed) + 1, dtype=torch.int32)
    cache = torch.full((len(order), 2, 2, heads[1], block_tokens, head_dim), float("nan"))
    taken = 0
    for sequence, ((start, rows), count) in enumerate(zip(parts, needed, strict=True)):
        ids = order[taken : taken + count]
        taken += count
        tables[sequence, :count] = ids.int()
        filled = torch.full((2, heads[1], count * block_tokens, head_dim), float("nan"))
        filled[:, :, : start + rows] = torch.randn(2, heads[1], start + rows, head_dim, generator=generator)
        cache[ids, 1] = filled.view(2, heads[1], count, block_tokens, head_dim).permute(2, 0, 1, 3, 4)
    total = sum(rows for _, rows in parts)
    begins = torch.zeros(len(parts) + 1, dtype=torch.int32)
    begins[1:] = torch.tensor([rows for _, rows in parts]).cumsum(0)
    rows_of = PagedRows(
        tables.to(device),
        begins.to(device),
        torch.tensor([start for start, _ in parts], dtype=torch.int32, device=device),
        max(start + rows for start, rows in parts),
        max(rows for _, rows in parts),
    )
    q = torch.randn(total, heads[0], head_dim, generator=generator).bfloat16().to(device)
    return PagedCase(q, cache.bfloat16().to(device), rows_of, tuple(parts))


def exact_attention(case: PagedCase, scores: Scores) -> torch.Tensor:
    """In float64, row by row over each sequence's own keys."""
    cache, out = case.cache.double().cpu(), torch.empty(case.q.shape, dtype=torch.float64)
    tables, q = case.rows.block_tables.cpu().long(), case.q.double().cpu()
    group, block_tokens, first = q.shape[1] // cache.shape[3], cache.shape[4], 0
    for sequence, (start, rows) in enumerate(case.parts):
        blocks = tables[sequence, : -(-(start + rows) // block_tokens)]
        paged = cache[blocks, 1].permute(1, 2, 0, 3, 4).reshape(2, cache.shape[3], -1, cache.shape[5])
        keys, values = paged[:, :, : start + rows].repeat_interleave(group, dim=1)
        position, key = start + torch.arange(rows)[:, None], torch.arange(start + rows)[None]
        products = torch.einsum("rhd,hkd->hrk", q[first : first + rows], keys) * scores.scale
        if scores.softcap is not None:
            products = scores.softcap * torch.tanh(products / scores.softcap)
        unseen = key > position
        if scores.window is not None:
            unseen |= key <= position - scores.window
        products = products.masked_fill(unseen, float("-inf"))
        if scores.sinks is not None:
            sink = scores.sinks.double().cpu()[:, None, None].expand(-1, rows, 1)
            products = torch.cat((products, sink), dim=-1)
        weights = products.softmax(dim=-1)[..., : start + rows]
        out[first : first + rows] = torch.einsum("hrk,hkd->rhd", weights, values)
        first += rows
    return out
