"""KV blocks on their way out of a pool."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.cases.case import BLOCK, HEAD_DIM, KV_HEADS, Call, Case, drawn
from engine.ops.cuda.cache import PoolPart, copy_blocks
from engine.ops.cuda.library import Library

_LAYERS = 32


def cases() -> Iterator[Case]:
    for blocks in (32, 1024):
        moved = 2 * blocks * _LAYERS * 2 * KV_HEADS * BLOCK * HEAD_DIM * 2
        name = f"gather of {blocks} KV blocks of {_LAYERS} layers"
        yield Case(name, "kv_copy", moved, 0, partial(_gathers, blocks))


def _gathers(blocks: int, library: Library) -> list[Call]:
    pool = drawn(2 * blocks, _LAYERS, 2, KV_HEADS, BLOCK, HEAD_DIM)
    buffer = torch.empty_like(pool[:blocks])
    ids = torch.randperm(2 * blocks, device="cuda")[:blocks].contiguous()
    return [partial(copy_blocks, library, PoolPart(buffer, None), PoolPart(pool, ids), blocks, _LAYERS, KV_HEADS)]
