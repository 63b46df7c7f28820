"""Operations on the paged cache other than attention: writing keys and values, copying blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.ops.cuda.library import Library
from engine.ops.cuda.structs import Copy, Kv, Pool, Rope
from engine.ops.cuda.tensors import refuse, require, require_rows
from engine.ops.head_norms import HeadNorms

BF16 = torch.bfloat16
_ALIGN = 16


def kv_struct(kv_cache: torch.Tensor, layer: int, device_type: str) -> Kv:
    """Of `[num_blocks, num_layers, 2, num_kv_heads, block_tokens, head_dim]` bfloat16. Raises SpliceError."""
    shape = (None, None, 2, None, None, None)
    address = require("kv_cache", kv_cache, BF16, shape, device_type, _ALIGN)
    if not 0 <= layer < kv_cache.shape[1]:
        raise refuse("layer", layer, f"0 to {kv_cache.shape[1] - 1}")
    return Kv(address, kv_cache.shape[1], kv_cache.shape[3], kv_cache.shape[4], kv_cache.shape[5])


def rope_and_store(
    library: Library,
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
    """See `signatures.RopeAndStoreOp`; all bfloat16. A row with a negative slot is not stored: rows that fill up a
    captured graph have one."""
    arguments, out = rope_arguments(library, q, k, v, positions, cos_sin, kv_cache, layer, slots, norms)
    library.call("rope_store", arguments)
    return out


def rope_arguments(
    library: Library,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
    norms: HeadNorms | None,
) -> tuple[Rope, torch.Tensor]:
    """What the kernel is told, checked, and the tensor it will write q to. Raises SpliceError."""
    device = library.device_type
    kv = kv_struct(kv_cache, layer, device)
    tokens, heads, dim = q.shape[0], kv.kv_heads, kv.head_dim
    queries = require_rows("q", q, BF16, (None, None, dim), device, 4)
    keys = require_rows("k", k, BF16, (tokens, heads, dim), device, 4)
    values = require_rows("v", v, BF16, (tokens, heads, dim), device, 4)
    table = require("cos_sin", cos_sin, torch.float32, (None, None), device, 4)
    at = require("positions", positions, torch.int64, (tokens,), device)
    to = require("slots", slots, torch.int64, (tokens,), device)
    q_norm, k_norm, is_float32, eps = None, None, False, 0.0
    if norms is not None:
        is_float32, eps = norms.q.dtype == torch.float32, norms.eps
        wanted = torch.float32 if is_float32 else BF16
        q_norm = require("q_norm", norms.q, wanted, (dim,), device, 4)
        k_norm = require("k_norm", norms.k, wanted, (dim,), device, 4)
    out = torch.empty(q.shape, dtype=BF16, device=q.device)
    arguments = Rope(
        out=out.data_ptr(), q=queries[0], k=keys[0], v=values[0],
        q_stride=queries[1], k_stride=keys[1], v_stride=values[1],
        q_norm=q_norm, k_norm=k_norm, cos_sin=table, positions=at, slots=to,
        tokens=tokens, q_heads=q.shape[1], rotary_dim=cos_sin.shape[1], layer=layer,
        kv=kv, norm_is_float32=is_float32, eps=eps,
    )  # fmt: skip
    return arguments, out


@dataclass(frozen=True, slots=True)
class PoolPart:
    """Which layers and heads of which blocks: where a copy begins in a pool, or in a buffer of the same form."""

    data: torch.Tensor
    """`[blocks, layers, planes, heads, block_tokens, head_dim]`, contiguous."""
    ids: torch.Tensor | None
    """Blocks, int64; None: from 0 on."""
    first_layer: int = 0
    first_head: int = 0


def copy_blocks(library: Library, to: PoolPart, source: PoolPart, blocks: int, layers: int, heads: int) -> None:
    """Copies so many blocks, layers and heads. Blocks the two share must not overlap with one another's place."""
    device, shape = library.device_type, source.data.shape
    if to.data.shape[2] != shape[2] or to.data.shape[4:] != shape[4:] or to.data.dtype != source.data.dtype:
        raise refuse("to", f"{to.data.dtype} {tuple(to.data.shape)}", f"planes and spans of {tuple(shape)}")
    parts = [_pool(name, part, blocks, device) for name, part in (("to", to), ("source", source))]
    span = shape[4] * shape[5] * source.data.element_size()
    library.call("kv_copy", Copy(*parts, blocks, layers, shape[2], heads, span))


def _pool(name: str, part: PoolPart, blocks: int, device: str) -> Pool:
    data = part.data
    address = require(name, data, data.dtype, (None,) * 6, device, _ALIGN)
    ids = None if part.ids is None else require(f"{name}.ids", part.ids, torch.int64, (blocks,), device)
    if ids is None and data.shape[0] < blocks:
        raise refuse(name, f"{data.shape[0]} blocks", f"{blocks} at least")
    return Pool(address, ids, data.shape[1], data.shape[3], part.first_layer, part.first_head)
