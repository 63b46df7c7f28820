"""Sequences of query rows over a paged cache of latents whose unused places are NaN, and exact attention over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.ops.cuda.attention import PagedRows
from engine.ops.cuda.latent import BY_DEVICE, Division, LatentKernel, attend_latents
from engine.ops.cuda.library import Library


@dataclass(frozen=True, slots=True)
class LatentCase:
    absorbed: torch.Tensor
    rotated: torch.Tensor
    cache: torch.Tensor
    rows: PagedRows
    parts: tuple[tuple[int, int], ...]
    """(start, rows) of each sequence."""
    scale: float

    def attend(self, library: Library, kernel: LatentKernel, division: Division = BY_DEVICE) -> torch.Tensor:
        return attend_latents(
            library, kernel, self.absorbed, self.rotated, self.cache, 1, self.rows, self.scale, None, division
        )

    def begin(self, sequence: int) -> int:
        return sum(rows for _, rows in self.parts[:sequence])

    def alone(self, sequence: int, first: int, count: int) -> LatentCase:
        """So many rows of one sequence, from its `first` on, by themselves."""
        begin, start = self.begin(sequence) + first, self.parts[sequence][0] + first
        device = self.cache.device
        return LatentCase(
            self.absorbed[begin : begin + count],
            self.rotated[begin : begin + count],
            self.cache,
            PagedRows(
                self.rows.block_tables[sequence : sequence + 1].contiguous(),
                torch.tensor([0, count], dtype=torch.int32, device=device),
                torch.tensor([start], dtype=torch.int32, device=device),
                start + count,
                count,
            ),
            ((start, count),),
            self.scale,
        )


def latent_case(
    parts: Sequence[tuple[int, int]],
    heads: int,
    dims: tuple[int, int],
    device: torch.device,
    block_tokens: int = 32,
    seed: int = 0,
) -> LatentCase:
    """`parts` are (start, rows) of sequences, `dims` those of latents and keys. Layer 1 of 2 is the one filled."""
    generator = torch.Generator().manual_seed(seed)
    needed = [-(-(start + rows) // block_tokens) for start, rows in parts]
    order = torch.randperm(sum(needed) + 2, generator=generator)
    tables = torch.zeros(len(parts), max(needed) + 1, dtype=torch.int32)
    cache = torch.full((len(order), 2, 1, 1, block_tokens, sum(dims)), float("nan"))
    taken = 0
    for sequence, ((start, rows), count) in enumerate(zip(parts, needed, strict=True)):
        ids = order[taken : taken + count]
        taken += count
        tables[sequence, :count] = ids.int()
        filled = torch.full((count * block_tokens, sum(dims)), float("nan"))
        filled[: start + rows] = torch.randn(start + rows, sum(dims), generator=generator)
        cache[ids, 1] = filled.view(count, 1, 1, block_tokens, sum(dims))
    total = sum(rows for _, rows in parts)
    begins = torch.zeros(len(parts) + 1, dtype=torch.int32)
    begins[1:] = torch.tensor([rows for _, rows in parts]).cumsum(0)
    q = torch.randn(total, heads, sum(dims), generator=generator).bfloat16().to(device)
    return LatentCase(
        q[:, :, : dims[0]],
        q[:, :, dims[0] :],
        cache.bfloat16().to(device),
        PagedRows(
            tables.to(device),
            begins.to(device),
            torch.tensor([start for start, _ in parts], dtype=torch.int32, device=device),
            max(start + rows for start, rows in parts),
            max(rows for _, rows in parts),
        ),
        tuple(parts),
        sum(dims) ** -0.5,
    )


def exact_latent_attention(case: LatentCase) -> torch.Tensor:
    """In float64, row by row over each sequence's own latents."""
    rank = case.absorbed.shape[2]
    q = torch.cat((case.absorbed, case.rotated), dim=2).double().cpu()
    cache, tables = case.cache.double().cpu(), case.rows.block_tables.cpu().long()
    out = torch.empty(case.absorbed.shape, dtype=torch.float64)
    for sequence, (start, rows) in enumerate(case.parts):
        begin = case.begin(sequence)
        blocks = tables[sequence, : -(-(start + rows) // cache.shape[4])]
        keys = cache[blocks, 1, 0, 0].reshape(-1, cache.shape[5])[: start + rows]
        products = torch.einsum("rhd,kd->rhk", q[begin : begin + rows], keys) * case.scale
        unseen = torch.arange(start + rows)[None] > start + torch.arange(rows)[:, None]
        weights = products.masked_fill(unseen[:, None], float("-inf")).softmax(dim=-1)
        out[begin : begin + rows] = weights @ keys[:, :rank]
    return out
