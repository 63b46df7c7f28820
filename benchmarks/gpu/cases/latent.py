"""Latent attention in DeepSeek-V3's shapes: 128 heads, or the 16 of a rank of eight, over latents of 512 + 64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.cases.case import BLOCK, Call, Case, drawn, sets
from engine.ops.cuda.attention import PagedRows
from engine.ops.cuda.latent import (
    LatentKernel,
    absorb,
    attend_latents,
    expand,
    store_latents,
    workspace_bytes,
)
from engine.ops.cuda.library import Library
from engine.ops.latent_norm import LatentNorm

_HEADS, _RANK, _ROPE, _NOPE, _VALUES = 128, 512, 64, 128, 128
_WIDTH = _RANK + _ROPE
_SCALE = (_NOPE + _ROPE) ** -0.5
_BATCHES = (
    (1, 8192),
    (1, 32768),
    (8, 8192),
    (32, 4096),
    (64, 1024),
    (64, 4096),
    (128, 1024),
    (128, 4096),
    (128, 32768),
)
"""(sequences, tokens of each)"""
_FEW_HEADS = ((1, 8192), (64, 4096), (128, 4096))
_PROMPTS = (2048, 8192)
_DECODE: tuple[LatentKernel, ...] = ("latent_decode", "latent_sm90_decode")
_PREFILL: tuple[LatentKernel, ...] = ("latent_prefill", "latent_sm90_prefill")
"""The latter is Hopper's."""


def decode() -> Iterator[Case]:
    for heads, batches in ((_HEADS, _BATCHES), (_HEADS // 8, _FEW_HEADS)):
        for batch, context in batches:
            name = f"latent decode, {heads} heads, batch {batch}, context {context}"
            moved, operations = _moved(batch, context, 1, heads), 2 * batch * context * heads * (_WIDTH + _RANK)
            for kernel in _DECODE:
                make = partial(_attend_calls, kernel, heads, batch, context, 1)
                yield Case(_of(name, kernel), kernel, moved, operations, make, goal="latents", group=name)


def rows() -> Iterator[Case]:
    for tokens in (1, 128, 4096):
        moved = tokens * (4 * _HEADS * _ROPE + 4 * _WIDTH + 4 * _ROPE)
        operations = tokens * (3 * (_HEADS + 1) * _ROPE + 5 * _RANK)
        yield Case(f"latent write, {tokens} rows", "store_latents", moved, operations, partial(_store_calls, tokens))
        for name, k, n in (("absorb", _NOPE, _RANK), ("expand", _RANK, _VALUES)):
            moved = 2 * _HEADS * (k * n + tokens * (k + n))
            make = partial(_product_calls, name, tokens, moved)
            yield Case(f"{name}, {tokens} rows", "head_products", moved, 2 * tokens * _HEADS * k * n, make)


def prefill() -> Iterator[Case]:
    for tokens in _PROMPTS:
        operations = tokens * (tokens + 1) // 2 * 2 * _HEADS * (_WIDTH + _RANK)
        moved, name = _moved(1, tokens, tokens, _HEADS), f"latent prefill, absorbed, causal, {tokens} tokens"
        for kernel in _PREFILL:
            make = partial(_attend_calls, kernel, _HEADS, 1, tokens, tokens)
            yield Case(_of(name, kernel), kernel, moved, operations, make, group=name)


def _of(name: str, kernel: LatentKernel) -> str:
    return f"{name}, Hopper's" if "sm90" in kernel else name


def _moved(batch: int, context: int, tokens: int, heads: int) -> int:
    return 2 * batch * (context * _WIDTH + tokens * heads * (_WIDTH + _RANK))


def _paged(batch: int, context: int, tokens: int) -> tuple[torch.Tensor, PagedRows]:
    """As `case.paged`, of latents."""
    count = -(-context // BLOCK)
    tables = torch.randperm(batch * count, device="cuda").int().view(batch, count)
    begins = torch.arange(0, batch * tokens + 1, tokens, dtype=torch.int32, device="cuda")
    starts = torch.full((batch,), context - tokens, dtype=torch.int32, device="cuda")
    cache = drawn(batch * count, 1, 1, 1, BLOCK, _WIDTH)
    return cache, PagedRows(tables, begins, starts, context, tokens)


def _attend_calls(
    kernel: LatentKernel, heads: int, batch: int, context: int, tokens: int, library: Library
) -> list[Call]:
    needed = workspace_bytes(library, kernel, batch * tokens, heads, _RANK, context)
    workspace = torch.empty(needed, dtype=torch.uint8, device="cuda")
    calls: list[Call] = []
    for _ in sets(2 * batch * context * _WIDTH):
        cache, paged = _paged(batch, context, tokens)
        q = drawn(batch * tokens, heads, _WIDTH)
        absorbed, rotated = q[:, :, :_RANK], q[:, :, _RANK:]
        calls.append(partial(attend_latents, library, kernel, absorbed, rotated, cache, 0, paged, _SCALE, workspace))
    return calls


def _store_calls(tokens: int, library: Library) -> list[Call]:
    cache, paged = _paged(1, max(tokens, BLOCK), tokens)
    at = torch.arange(tokens, device="cuda")
    slots = paged.block_tables[0].long()[at // BLOCK] * BLOCK + at % BLOCK
    table, norm = torch.rand(tokens, _ROPE, device="cuda"), LatentNorm(drawn(_RANK), 1e-6)
    calls: list[Call] = []
    for _ in sets(2 * tokens * _HEADS * (_NOPE + _ROPE)):
        q, down = drawn(tokens, _HEADS, _NOPE + _ROPE), drawn(tokens, _WIDTH)
        latents, keys = down[:, :_RANK], down[:, _RANK:]
        calls.append(partial(store_latents, library, q, latents, keys, at, table, cache, 0, slots, norm))
    return calls


def _product_calls(name: str, tokens: int, moved: int, library: Library) -> list[Call]:
    calls: list[Call] = []
    for _ in sets(moved):
        up = drawn(_HEADS, _NOPE + _VALUES, _RANK)
        if name == "absorb":
            calls.append(partial(absorb, library, drawn(tokens, _HEADS, _NOPE), up))
        else:
            calls.append(partial(expand, library, drawn(tokens, _HEADS, _RANK), up, _NOPE))
    return calls
