"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) over a paged cache of latents, in plain torch.

A cache row is [latent | rotated key], shared by all heads. Keys and values of a head are the latent times that head's
part of the up-projection; the projection can be applied to the cached latents (un-absorbed: few operations for each
query, worth it for the many queries of a prompt) or moved to the other side of the products (absorbed: attention over
the latents themselves, worth it for the one query of a decode step). The two are equal in exact arithmetic and round
differently, so which one a row takes depends on its place in the request alone: rows of the prompt are un-absorbed,
all after it absorbed, however a step happens to be cut. As in `reference`, every product has the same shape whatever
else is in the step.
"""

from __future__ import annotations

import torch

from engine.ops.latent_norm import LatentNorm
from engine.ops.signatures import RmsNormOp
from engine.steps.step_plan import StepBounds

_TILE_ROWS = 32
_HEADS_AT_ONCE = 8
"""Heads whose keys and values exist at one time: bounds what a long prompt takes beside its cache."""


class StoreLatents:
    """See `signatures.StoreLatentsOp`; norms by that operation, so that they have its bits."""

    def __init__(self, rms_norm: RmsNormOp) -> None:
        self._rms_norm = rms_norm

    def __call__(
        self,
        q: torch.Tensor,
        latents: torch.Tensor,
        keys: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        slots: torch.Tensor,
        norm: LatentNorm | None = None,
    ) -> torch.Tensor:
        """See `signatures.StoreLatentsOp`."""
        if norm is not None:
            latents = norm.apart(self._rms_norm, latents)
        return store_latents(q, latents, keys, positions, cos_sin, kv_cache, layer, slots)


def store_latents(
    q: torch.Tensor,
    latents: torch.Tensor,
    keys: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
) -> torch.Tensor:
    """See `signatures.StoreLatentsOp`; of latents as they are."""
    cos, sin = cos_sin[positions].chunk(2, dim=-1)
    block_tokens = kv_cache.shape[4]
    rows = torch.cat((latents.float(), _rotated(keys, cos, sin)), dim=1)
    kv_cache[slots // block_tokens, layer, 0, 0, slots % block_tokens] = rows.to(kv_cache.dtype)
    nope = q.shape[2] - keys.shape[1]
    turned = _rotated(q[:, :, nope:], cos.unsqueeze(1), sin.unsqueeze(1))
    return torch.cat((q[:, :, :nope], turned.to(q.dtype)), dim=2)


def latent_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    starts: torch.Tensor,
    prompt_ends: torch.Tensor,
    up: torch.Tensor,
    scale: float,
    *,
    bounds: StepBounds | None = None,
) -> torch.Tensor:
    """See `signatures.LatentAttentionOp`."""
    nope = q.shape[2] - (kv_cache.shape[5] - up.shape[2])
    out = q.new_empty(*q.shape[:2], up.shape[1] - nope)
    begins = query_starts.tolist()
    for sequence, (start, prompt_end) in enumerate(zip(starts.tolist(), prompt_ends.tolist(), strict=True)):
        first, last = begins[sequence], begins[sequence + 1]
        cached = _gather(kv_cache, layer, block_tables[sequence], start + last - first)
        turn = min(last, max(first, first + prompt_end - start))
        if turn > first:
            out[first:turn] = _unabsorbed(q[first:turn], start, cached, up, scale)
        for row in range(turn, last):
            out[row] = _absorbed(q[row], start + row - first, cached, up, scale)
    return out


def _gather(kv_cache: torch.Tensor, layer: int, block_table: torch.Tensor, end: int) -> torch.Tensor:
    """Rows of positions [0, end) as fp32 `[end padded to whole tiles, rank + rope]`, zero from `end` on."""
    block_tokens, width = kv_cache.shape[4:]
    blocks = kv_cache[block_table[: -(-end // block_tokens)].long(), layer].float()
    rows = blocks.new_zeros(_padded(end), width)
    rows[:end] = blocks.reshape(-1, width)[:end]
    return rows


def _unabsorbed(q: torch.Tensor, start: int, cached: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """`q` `[n, num_heads, nope + rope]` at positions `start`...; returns `[n, num_heads, v]` fp32."""
    rank = up.shape[2]
    end = start + len(q)
    latents, rotated = cached[: _padded(end), :rank].to(up.dtype), cached[: _padded(end), rank:]
    nope = q.shape[2] - rotated.shape[1]
    first_tile = start - start % _TILE_ROWS
    queries = q.new_zeros(_padded(end) - first_tile, *q.shape[1:], dtype=torch.float32)
    queries[start - first_tile : end - first_tile] = q
    groups = []
    for head in range(0, len(up), _HEADS_AT_ONCE):
        part = up[head : head + _HEADS_AT_ONCE]
        expanded = _in_tiles(latents, part.reshape(-1, rank)).float().view(len(latents), len(part), -1)
        shared = rotated.unsqueeze(1).expand(-1, len(part), -1)
        keys = torch.cat((expanded[:, :, :nope], shared), dim=2).transpose(0, 1).contiguous()
        values = expanded[:, :, nope:].transpose(0, 1).contiguous()
        own = queries[:, head : head + _HEADS_AT_ONCE].transpose(0, 1)
        tiles = [
            _attend_tile(own[:, tile - first_tile : tile - first_tile + _TILE_ROWS], keys, values, tile, scale)
            for tile in range(first_tile, end, _TILE_ROWS)
        ]
        groups.append(torch.cat(tiles, dim=1).transpose(0, 1))
    return torch.cat(groups, dim=1)[start - first_tile : end - first_tile]


def _in_tiles(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x` `[whole tiles, K]` times the transposed `weight` `[N, K]`."""
    tiles = (x[first : first + _TILE_ROWS] for first in range(0, len(x), _TILE_ROWS))
    return torch.cat([torch.mm(tile, weight.t()) for tile in tiles])


def _attend_tile(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tile: int, scale: float) -> torch.Tensor:
    """`q` `[heads, _TILE_ROWS, D]` at positions `tile`..., over positions 0 to the end of the tile."""
    span = tile + _TILE_ROWS
    scores = torch.bmm(q.contiguous(), keys[:, :span].contiguous().transpose(1, 2)).mul_(scale)
    future = torch.arange(span) > torch.arange(tile, span).unsqueeze(1)
    weights = scores.masked_fill_(future, float("-inf")).softmax(dim=-1)
    return torch.bmm(weights, values[:, :span].contiguous())


def _absorbed(q: torch.Tensor, position: int, cached: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """`q` `[num_heads, nope + rope]`; every product's shape is a function of the position. `[num_heads, v]`."""
    rank = up.shape[2]
    rows = cached[: _padded(position + 1)]
    nope = q.shape[1] - (rows.shape[1] - rank)
    absorbed = torch.bmm(q[:, :nope].unsqueeze(1), up[:, :nope]).squeeze(1)
    query = torch.cat((absorbed.float(), q[:, nope:].float()), dim=1)
    scores = torch.mm(query, rows.t()).mul_(scale)
    scores[:, position + 1 :] = float("-inf")
    latent = torch.mm(scores.softmax(dim=-1), rows[:, :rank])
    return torch.bmm(latent.to(up.dtype).unsqueeze(1), up[:, nope:].transpose(1, 2)).squeeze(1)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x` `[..., rope]`, halves paired; fp32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _padded(rows: int) -> int:
    return -(-rows // _TILE_ROWS) * _TILE_ROWS
