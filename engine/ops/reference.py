"""Every operation in plain torch: the meaning of `signatures`, and what kernels are tested against.

A library's matrix product may pick another kernel, hence another order of summation, for another number of rows. Here
every product has the same number of rows whatever the batch: linears work in tiles of `TILE_ROWS` rows, attention in
tiles of `TILE_ROWS` queries anchored at absolute positions, over keys from 0, or from the first that the tile's window
shows, to the end of that tile. Missing rows are zeros. That buys results that are independent of the neighbours with
up to `TILE_ROWS` times the arithmetic in decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.ops import scaled_kv
from engine.ops.candidate import Candidate
from engine.ops.experts import GatheredExperts
from engine.ops.features import FEATURES
from engine.ops.head_norms import HeadNorms
from engine.ops.latent_attention import StoreLatents, latent_attention
from engine.ops.names import OpName
from engine.ops.routing import route
from engine.ops.signatures import PackedWeight
from engine.ops.weight_matrix import stacked
from engine.spec import Activation
from engine.steps.step_plan import StepBounds

TILE_ROWS = 32
_LM_HEAD_COLUMNS = 8192
_OAI_LIMIT, _OAI_SLOPE = 7.0, 1.702
_SERIAL_ELEMENTS = 32768
"""Below this size (at::internal::GRAIN_SIZE) torch splits no element-wise loop among threads."""


def linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """See `signatures.LinearOp`."""
    rows = x.shape[0]
    out = x.new_empty(_padded(rows), weight.shape[0])
    for first, tile in _row_tiles(x):
        torch.mm(tile, weight.t(), out=out[first : first + TILE_ROWS])
    out = out[:rows]
    return out if bias is None else out + bias


def lm_head(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """See `signatures.LmHeadOp`."""
    if weight.dtype == torch.float32:
        return linear(x.float(), weight, None)
    parts = (weight[first : first + _LM_HEAD_COLUMNS] for first in range(0, weight.shape[0], _LM_HEAD_COLUMNS))
    return torch.cat([linear(x.float(), part.float(), None) for part in parts], dim=1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `signatures.RmsNormOp`."""
    wide = x.float()
    inverse_rms = torch.rsqrt((wide * wide).mean(dim=-1, keepdim=True) + eps)
    if weight.dtype == torch.float32:
        return (wide * inverse_rms * weight).to(x.dtype)
    return weight * (wide * inverse_rms).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `signatures.AddRmsNormOp`."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rope_and_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
    norms: HeadNorms | None = None,
) -> torch.Tensor:
    """See `signatures.RopeAndStoreOp`."""
    if norms is not None:
        q, k = norms.apart(rms_norm, q, k)
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    rotated = _rotate(k, cos, sin)
    if scaled_kv.is_scaled(kv_cache):
        scaled_kv.store(kv_cache, layer, 0, slots, rotated)
        scaled_kv.store(kv_cache, layer, 1, slots, v.float())
        return _rotate(q, cos, sin).to(q.dtype)
    block_tokens = kv_cache.shape[4]
    blocks, offsets = slots // block_tokens, slots % block_tokens
    cache = kv_cache[:, layer]
    cache[blocks, 0, :, offsets] = rotated.to(kv_cache.dtype)
    cache[blocks, 1, :, offsets] = v.to(kv_cache.dtype)
    return _rotate(q, cos, sin).to(q.dtype)


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    starts: torch.Tensor,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    bounds: StepBounds | None = None,
) -> torch.Tensor:
    """See `signatures.PagedAttentionOp`."""
    out = torch.empty_like(q)
    begins = query_starts.tolist()
    scores = _Scores(scale, window, softcap, sinks)
    for sequence, start in enumerate(starts.tolist()):
        first, last = begins[sequence], begins[sequence + 1]
        end = start + last - first
        first_tile = start - start % TILE_ROWS
        origin = scores.first_key(first_tile)
        keys, values = _gather(kv_cache, layer, block_tables[sequence], (origin, end), q.shape[2])
        for tile in range(first_tile, end, TILE_ROWS):
            low, high = max(tile, start), min(tile + TILE_ROWS, end)
            rows = slice(first + low - start, first + high - start)
            queries = q.new_zeros(TILE_ROWS, *q.shape[1:], dtype=torch.float32)
            queries[low - tile : high - tile] = q[rows]
            seen = slice(scores.first_key(tile) - origin, tile + TILE_ROWS - origin)
            attended = _attend_tile(queries, keys[:, seen], values[:, seen], tile, scores)
            out[rows] = attended[low - tile : high - tile].to(q.dtype)
    return out


def gated_mul(gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """See `signatures.GatedMulOp`.

    The gate is a view with gaps between its rows and each call is short enough to stay on one thread: torch then
    vectorises every row from its own beginning, so that which elements go through the scalar tail depends on the
    column alone.
    """
    width = gate_up.shape[1] // 2
    act = _ACTIVATIONS[activation]
    out = gate_up.new_empty(gate_up.shape[0], width)
    rows = max(1, _SERIAL_ELEMENTS // width)
    for first in range(0, gate_up.shape[0], rows):
        wide = gate_up[first : first + rows].to(torch.float32, copy=True)
        out[first : first + rows] = act(wide[:, :width], wide[:, width:])
    return out


def _silu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


def _gelu_tanh(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    # Step by step, because torch's own gelu splits even short rows between threads. Products and sums have one rounding
    # however they are vectorised; the tanh must see rows with gaps between them.
    cube = (gate * gate * gate).mul_(0.044715)
    up.mul_(gate).mul_(0.5)
    return up * gate.add_(cube).mul_(math.sqrt(2 / math.pi)).tanh_().add_(1)


def _swiglu_oai(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    # In place, because the sigmoid too must see rows with gaps between them.
    gate.clamp_(max=_OAI_LIMIT)
    up.clamp_(-_OAI_LIMIT, _OAI_LIMIT).add_(1).mul_(gate)
    return up * gate.mul_(_OAI_SLOPE).sigmoid_()


_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "swiglu_oai": _swiglu_oai,
}


def _row_tiles(x: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    x = x.contiguous()
    rows = x.shape[0]
    tiles = [(first, x[first : first + TILE_ROWS]) for first in range(0, rows - rows % TILE_ROWS, TILE_ROWS)]
    if rows % TILE_ROWS:
        last = x.new_zeros(TILE_ROWS, x.shape[1])
        first = rows - rows % TILE_ROWS
        last[: rows - first] = x[first:]
        tiles.append((first, last))
    return tiles


def _padded(rows: int) -> int:
    return -(-rows // TILE_ROWS) * TILE_ROWS


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    first, second, still = x.float().tensor_split((half, 2 * half), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, still), dim=-1)


def _gather(
    kv_cache: torch.Tensor, layer: int, block_table: torch.Tensor, span: tuple[int, int], head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values from the first position of `span` to the end of the tile of its last as fp32
    `[num_kv_heads, n, D]`, zero behind the span."""
    (origin, end), heads = span, kv_cache.shape[3]
    is_scaled = scaled_kv.is_scaled(kv_cache)
    block_tokens = scaled_kv.block_tokens_of(kv_cache, head_dim) if is_scaled else kv_cache.shape[4]
    first_block = origin // block_tokens
    own = block_table[first_block : -(-end // block_tokens)].long()
    blocks = scaled_kv.load(kv_cache, layer, own, head_dim) if is_scaled else kv_cache[own, layer].float()
    paged = blocks.permute(1, 2, 0, 3, 4).reshape(2, heads, -1, head_dim)
    both = paged.new_zeros(2, heads, _padded(end) - origin, head_dim)
    skipped = origin - first_block * block_tokens
    both[:, :, : end - origin] = paged[:, :, skipped : skipped + end - origin]
    return both[0], both[1]


@dataclass(frozen=True, slots=True)
class _Scores:
    """From products of queries and keys to weights of values; see `signatures.PagedAttentionOp`."""

    scale: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None

    def first_key(self, tile: int) -> int:
        """Where the keys begin that queries from `tile` on can see: a function of the position alone, so that a tile's
        keys are the same in every step."""
        return 0 if self.window is None else max(0, _padded(tile - self.window + 2) - TILE_ROWS)

    def weights(self, products: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """`products` `[num_kv_heads, group, queries, span]`, `distances` `[queries, span]` from key to query.

        Every tensor here has one size for a tile at one position, so torch treats an element the same every time.
        """
        scores = products.mul_(self.scale)
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        unseen = distances < 0
        if self.window is not None:
            unseen |= distances >= self.window
        scores = scores.masked_fill_(unseen, float("-inf"))
        if self.sinks is None:
            return scores.softmax(dim=-1)
        sinks = self.sinks.view(*scores.shape[:2], 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat((scores, sinks), dim=-1).softmax(dim=-1)[..., :-1]


def _attend_tile(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tile: int, scores: _Scores
) -> torch.Tensor:
    """`queries` fp32 `[TILE_ROWS, num_heads, D]` at positions `tile`...; keys and values
    `[num_kv_heads, span, D]`, up to the end of the tile."""
    kv_heads, span, head_dim = keys.shape
    end = tile + TILE_ROWS
    grouped = queries.view(TILE_ROWS, kv_heads, -1, head_dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, head_dim)
    products = torch.bmm(grouped, keys.contiguous().transpose(1, 2))
    distances = torch.arange(tile, end).unsqueeze(1) - torch.arange(end - span, end)
    weights = scores.weights(products.view(kv_heads, -1, TILE_ROWS, span), distances).reshape(products.shape)
    attended = torch.bmm(weights, values.contiguous())
    return attended.view(kv_heads, -1, TILE_ROWS, head_dim).permute(2, 0, 1, 3).reshape(queries.shape)


def _supports(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.bfloat16)


EXPERTS = GatheredExperts(linear, stacked, gated_mul)
store_latents = StoreLatents(rms_norm)
_FUNCTIONS: dict[OpName, Callable[..., Any]] = {
    "linear": linear,
    "lm_head": lm_head,
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "rope_and_store": rope_and_store,
    "paged_attention": paged_attention,
    "gated_mul": gated_mul,
    "store_latents": store_latents,
    "latent_attention": latent_attention,
    "route": route,
    "experts": EXPERTS,
}
CANDIDATES: tuple[Candidate, ...] = tuple(
    Candidate(op=op, name="torch", fn=function, supports=_supports, rank=0, features=FEATURES.get(op, frozenset()))
    for op, function in _FUNCTIONS.items()
)
