"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) over the paged cache of latents, absorbed for every row.

A head's query goes to the side of the latents (`absorb`), attends to cache rows, which all heads share, and the latent
that comes out becomes the head's value (`expand`); `latent_attention` is the three of them.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Literal

import torch

from engine.ops.cuda.attention import PagedRows
from engine.ops.cuda.cache import BF16
from engine.ops.cuda.library import Library
from engine.ops.cuda.tensors import refuse, require, require_rows, require_strides
from engine.ops.latent_norm import LatentNorm

LATENT_DIMS = frozenset({(512, 64), (256, 32)})
"""(rank, rope) that attention has kernels for."""
LatentKernel = Literal["latent_decode", "latent_prefill", "latent_sm90_decode", "latent_sm90_prefill"]
"""The latter two are Hopper's."""
_ALIGN = 16


class _Latents(Structure):
    _fields_ = (("data", c_void_p), *((name, c_int64) for name in ("layers", "block_tokens", "rank", "rope")))


class LatentStore(Structure):
    """`splice_cuda_latent_store`."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "latents", "keys", "norm", "cos_sin", "positions", "slots")),
        *((name, c_int64) for name in ("q_stride", "latents_stride", "keys_stride", "tokens", "heads", "still")),
        ("layer", c_int64),
        ("cache", _Latents),
        ("norm_is_float32", c_int32),
        ("eps", c_float),
    )


class _LatentAttention(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("out", "absorbed", "rotated")),
        *((name, c_int64) for name in ("out_row_stride", "out_head_stride", "absorbed_row_stride")),
        *((name, c_int64) for name in ("absorbed_head_stride", "rotated_row_stride", "rotated_head_stride")),
        ("cache", _Latents),
        *((name, c_void_p) for name in ("block_tables", "query_starts", "starts", "workspace")),
        *((name, c_int64) for name in ("layer", "table_stride", "rows", "sequences", "heads")),
        *((name, c_int64) for name in ("max_context", "max_query")),
        ("scale", c_float),
        *((name, c_int32) for name in ("row_tile", "halves")),
    )


class _HeadProduct(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "w")),
        *((name, c_int64) for name in ("y_row_stride", "y_head_stride", "x_row_stride", "x_head_stride")),
        *((name, c_int64) for name in ("w_row_stride", "w_head_stride", "rows", "heads", "k", "n")),
        ("w_is_columns", c_int32),
    )


@dataclass(frozen=True, slots=True)
class Division:
    """How attention is divided among blocks: 0 leaves it to the device. No bit depends on it."""

    row_tile: Literal[0, 16, 32, 64] = 0
    """Rows of heads a block takes."""
    halves: Literal[0, 2, 3, 4] = 0
    """Pieces of 32 keys it has room for."""


BY_DEVICE = Division()


def store_latents(
    library: Library,
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
    """See `signatures.StoreLatentsOp`; all bfloat16. The last part of q's heads turns where it is: what is returned is
    `q` itself. A row with a negative slot is not stored. A norm has the bits of `rms_norm`; its weight is bfloat16 or
    float32."""
    arguments = store_arguments(library, q, latents, keys, positions, cos_sin, kv_cache, layer, slots, norm)
    library.call("store_latents", arguments)
    return q


def store_arguments(
    library: Library,
    q: torch.Tensor,
    latents: torch.Tensor,
    keys: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
    norm: LatentNorm | None,
) -> LatentStore:
    """What the kernel is told, checked. Raises SpliceError."""
    device = library.device_type
    cache = _latents(kv_cache, layer, latents.shape[-1], device)
    tokens, rope = q.shape[0], cache.rope
    queries = require_rows("q", q, BF16, (None, None, None), device, 4)
    if q.shape[2] < rope:
        raise refuse("q", f"of shape {tuple(q.shape)}", f"heads of {rope} dimensions at least")
    rows = require_rows("latents", latents, BF16, (tokens, cache.rank), device, _ALIGN)
    turning = require_rows("keys", keys, BF16, (tokens, rope), device, 4)
    table = require("cos_sin", cos_sin, torch.float32, (None, rope), device, 4)
    at = require("positions", positions, torch.int64, (tokens,), device)
    to = require("slots", slots, torch.int64, (tokens,), device)
    weight, is_float32, eps = None, False, 0.0
    if norm is not None:
        is_float32, eps = norm.weight.dtype == torch.float32, norm.eps
        weight = require("norm", norm.weight, torch.float32 if is_float32 else BF16, (cache.rank,), device, _ALIGN)
    return LatentStore(
        q=queries[0], latents=rows[0], keys=turning[0], norm=weight, cos_sin=table, positions=at, slots=to,
        q_stride=queries[1], latents_stride=rows[1], keys_stride=turning[1], tokens=tokens, heads=q.shape[1],
        still=q.shape[2] - rope, layer=layer, cache=cache, norm_is_float32=is_float32, eps=eps,
    )  # fmt: skip


def absorb(library: Library, q: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The first part of q's heads, `[M, num_heads, nope]`, perhaps a part of wider heads, on the side of the latents:
    `[M, num_heads, rank]`. `up` `[num_heads, nope + v, rank]`; bfloat16."""
    return _head_products(library, q, up[:, : q.shape[2]], up.shape[2], by_columns=False)


def expand(library: Library, latents: torch.Tensor, up: torch.Tensor, nope: int) -> torch.Tensor:
    """Values `[M, num_heads, v]` of `latents` `[M, num_heads, rank]`; `up` as in `absorb`."""
    return _head_products(library, latents, up[:, nope:], up.shape[1] - nope, by_columns=True)


def workspace_bytes(library: Library, kernel: LatentKernel, rows: int, heads: int, rank: int, max_context: int) -> int:
    """Of `attend_latents`. Known before anything is captured or allocated; prefill's depends on the device and not on
    rows. Raises SpliceError where there is no device to ask."""
    twin = kernel.replace("_sm90", "")
    numbers = (rows, heads, rank, max_context) if twin == "latent_decode" else (rank, max_context)
    function = library.function(f"{twin}_workspace")
    function.restype = c_int64
    found = int(function(*(c_int64(number) for number in numbers)))
    if found < 0:
        raise refuse("library", str(library.path), "a device to run on")
    return found


def attend_latents(
    library: Library,
    kernel: LatentKernel,
    absorbed: torch.Tensor,
    rotated: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    rows: PagedRows,
    scale: float,
    workspace: torch.Tensor | None = None,
    division: Division = BY_DEVICE,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of [absorbed | rotated] over cache rows, whose first part is the value: `[M, num_heads, rank]`.

    `absorbed` `[M, num_heads, rank]` and `rotated` `[M, num_heads, rope]` bfloat16, strided perhaps; `kv_cache` as in
    `signatures.StoreLatentsOp`, bfloat16. `latent_decode` is for few rows a sequence and splits keys, `latent_prefill`
    for many; both give the same bits. So do `latent_sm90_decode` and `latent_sm90_prefill`, Hopper's, whose division is
    64 rows and 4 halves, and whose order of operations is that of the others. `workspace` uint8 of `workspace_bytes`,
    free again after the call. With `out` the result is written there.
    """
    device = library.device_type
    tokens, heads, rank = absorbed.shape
    cache = _latents(kv_cache, layer, rank, device)
    queries = require_strides("absorbed", absorbed, BF16, (None, None, None), device, _ALIGN)
    turned = require_strides("rotated", rotated, BF16, (tokens, heads, cache.rope), device, _ALIGN)
    sequences = rows.starts.shape[0]
    tables = require("block_tables", rows.block_tables, torch.int32, (sequences, None), device)
    begins = require("query_starts", rows.query_starts, torch.int32, (sequences + 1,), device)
    starts = require("starts", rows.starts, torch.int32, (sequences,), device)
    needed = workspace_bytes(library, kernel, tokens, heads, rank, rows.max_context)
    if workspace is None:
        workspace = torch.empty(needed, dtype=torch.uint8, device=absorbed.device)
    room = require("workspace", workspace, torch.uint8, (None,), device, _ALIGN if needed else 1)
    if workspace.numel() < needed:
        raise refuse("workspace", f"{workspace.numel()} bytes", f"{needed} at least")
    if out is None:
        out = torch.empty(tokens, heads, rank, dtype=BF16, device=absorbed.device)
    result = require("out", out, BF16, (tokens, heads, rank), device, _ALIGN)
    arguments = _LatentAttention(
        out=result, absorbed=queries[0], rotated=turned[0], out_row_stride=heads * rank, out_head_stride=rank,
        absorbed_row_stride=queries[1][0], absorbed_head_stride=queries[1][1], rotated_row_stride=turned[1][0],
        rotated_head_stride=turned[1][1], cache=cache, block_tables=tables, query_starts=begins, starts=starts,
        workspace=room, layer=layer, table_stride=rows.block_tables.shape[1], rows=tokens, sequences=sequences,
        heads=heads, max_context=rows.max_context, max_query=rows.max_query, scale=scale, row_tile=division.row_tile,
        halves=division.halves,
    )  # fmt: skip
    library.call(kernel, arguments)
    return out


def latent_attention(
    library: Library,
    kernel: LatentKernel,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    rows: PagedRows,
    up: torch.Tensor,
    scale: float,
    workspace: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `signatures.LatentAttentionOp`; bfloat16, and every row absorbed, those of the prompt too."""
    rope = kv_cache.shape[-1] - up.shape[2]
    nope = q.shape[2] - rope
    if not 0 < nope < up.shape[1]:
        raise refuse(
            "q", f"heads of {q.shape[2]}", f"{rope} dimensions that turn and fewer than {up.shape[1]} that do not"
        )
    absorbed = absorb(library, q[:, :, :nope], up)
    attended = attend_latents(library, kernel, absorbed, q[:, :, nope:], kv_cache, layer, rows, scale, workspace)
    return expand(library, attended, up, nope)


def _latents(kv_cache: torch.Tensor, layer: int, rank: int, device_type: str) -> _Latents:
    """Of `[num_blocks, num_layers, 1, 1, block_tokens, rank + rope]` bfloat16. Raises SpliceError."""
    address = require("kv_cache", kv_cache, BF16, (None, None, 1, 1, None, None), device_type, _ALIGN)
    if not 0 <= layer < kv_cache.shape[1]:
        raise refuse("layer", layer, f"0 to {kv_cache.shape[1] - 1}")
    if kv_cache.shape[5] <= rank:
        raise refuse("kv_cache", f"rows of {kv_cache.shape[5]}", f"more than a latent's {rank}")
    return _Latents(address, kv_cache.shape[1], kv_cache.shape[4], rank, kv_cache.shape[5] - rank)


def _head_products(
    library: Library, x: torch.Tensor, weight: torch.Tensor, n: int, *, by_columns: bool
) -> torch.Tensor:
    device = library.device_type
    tokens, heads, k = x.shape
    operand, strides = require_strides("x", x, BF16, (None, None, None), device, _ALIGN)
    shape = (heads, n, k) if by_columns else (heads, k, n)
    matrices, steps = require_strides("up", weight, BF16, shape, device, _ALIGN)
    y = torch.empty(tokens, heads, n, dtype=BF16, device=x.device)
    arguments = _HeadProduct(
        y=y.data_ptr(), x=operand, w=matrices, y_row_stride=heads * n, y_head_stride=n, x_row_stride=strides[0],
        x_head_stride=strides[1], w_row_stride=steps[1], w_head_stride=steps[0], rows=tokens, heads=heads, k=k, n=n,
        w_is_columns=by_columns,
    )  # fmt: skip
    library.call("head_products", arguments)
    return y
