"""Causal attention over the paged cache. Kernels have one order of operations, and the same bits where wgmma rounds as
mma.sync does."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch

from engine.ops.cuda.cache import BF16, kv_struct
from engine.ops.cuda.library import Library
from engine.ops.cuda.structs import Attention
from engine.ops.cuda.tensors import refuse, require

PREFILL_HEAD_DIMS = DECODE_HEAD_DIMS = frozenset({64, 80, 96, 128, 256})
SM90_HEAD_DIMS = frozenset({64, 80, 96, 128})
_Kernel = Literal["decode_attention", "prefill_attention", "prefill_attention_sm90"]
_ALIGN = 16


@dataclass(frozen=True, slots=True)
class PagedRows:
    """Which rows belong to whom, as in `signatures.PagedAttentionOp`, and what bounds them on the host: a launch is
    sized before the device's arrays could be read."""

    block_tables: torch.Tensor
    query_starts: torch.Tensor
    starts: torch.Tensor
    max_context: int
    """No row's position + 1 is above this."""
    max_query: int
    """No sequence has more rows."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What becomes of a product of query and key."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    """`[num_heads]` float32."""


def workspace_bytes(library: Library, rows: int, heads: int, head_dim: int, max_context: int) -> int:
    """Of `decode_attention`. Known before anything is captured or allocated."""
    function = library.function("decode_workspace")
    function.restype = ctypes.c_int64
    return int(function(*(ctypes.c_int64(number) for number in (rows, heads, head_dim, max_context))))


def decode_attention(
    library: Library,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    rows: PagedRows,
    scores: Scores,
    workspace: torch.Tensor | None = None,
) -> torch.Tensor:
    """For few rows a sequence: split over keys. `workspace` uint8 of `workspace_bytes`, free again after the call."""
    needed = workspace_bytes(library, q.shape[0], q.shape[1], q.shape[2], rows.max_context)
    if workspace is None:
        workspace = torch.empty(needed, dtype=torch.uint8, device=q.device)
    address = require("workspace", workspace, torch.uint8, (None,), library.device_type, _ALIGN)
    if workspace.numel() < needed:
        raise refuse("workspace", f"{workspace.numel()} bytes", f"{needed} at least")
    return _attend(library, "decode_attention", q, kv_cache, layer, rows, scores, address)


def prefill_attention(
    library: Library, q: torch.Tensor, kv_cache: torch.Tensor, layer: int, rows: PagedRows, scores: Scores
) -> torch.Tensor:
    """For many rows a sequence."""
    return _attend(library, "prefill_attention", q, kv_cache, layer, rows, scores, None)


def prefill_attention_sm90(
    library: Library, q: torch.Tensor, kv_cache: torch.Tensor, layer: int, rows: PagedRows, scores: Scores
) -> torch.Tensor:
    """The same on Hopper alone; `SM90_HEAD_DIMS`."""
    return _attend(library, "prefill_attention_sm90", q, kv_cache, layer, rows, scores, None)


def _attend(
    library: Library,
    kernel: _Kernel,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    rows: PagedRows,
    scores: Scores,
    workspace: int | None,
) -> torch.Tensor:
    device = library.device_type
    kv = kv_struct(kv_cache, layer, device)
    queries = require("q", q, BF16, (None, None, kv.head_dim), device, _ALIGN)
    sequences = rows.starts.shape[0]
    tables = require("block_tables", rows.block_tables, torch.int32, (sequences, None), device)
    begins = require("query_starts", rows.query_starts, torch.int32, (sequences + 1,), device)
    starts = require("starts", rows.starts, torch.int32, (sequences,), device)
    sinks = None
    if scores.sinks is not None:
        sinks = require("sinks", scores.sinks, torch.float32, (q.shape[1],), device)
    out = torch.empty_like(q)
    arguments = Attention(
        out=out.data_ptr(), q=queries, kv=kv, block_tables=tables, query_starts=begins, starts=starts, sinks=sinks,
        workspace=workspace, layer=layer, table_stride=rows.block_tables.shape[1], rows=q.shape[0],
        sequences=sequences, q_heads=q.shape[1], window=scores.window or 0, max_context=rows.max_context,
        max_query=rows.max_query, scale=scores.scale, softcap=scores.softcap or 0.0,
    )  # fmt: skip
    library.call(kernel, arguments)
    return out
