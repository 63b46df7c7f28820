"""What is done row by row: norms, activations, rotation and the write into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.cases.case import BLOCK, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, WIDE, Call, Case, drawn, paged, sets
from engine.ops.cuda.cache import rope_and_store
from engine.ops.cuda.library import Library
from engine.ops.cuda.rows import add_rms_norm, gated_mul

_ROWS = (1, 64, 8192)
_ALL_HEADS = HEADS + 2 * KV_HEADS


def cases() -> Iterator[Case]:
    for rows in _ROWS:
        yield Case(
            f"add and RMSNorm, {rows} rows", "rms_norm", 8 * rows * HIDDEN, 5 * rows * HIDDEN, partial(_norms, rows)
        )
        yield Case(f"SwiGLU, {rows} rows", "gated_mul", 6 * rows * WIDE, 15 * rows * WIDE, partial(_gates, rows))
        moved = rows * (4 * _ALL_HEADS * HEAD_DIM + 4 * HEAD_DIM)
        operations = 6 * rows * (HEADS + KV_HEADS) * HEAD_DIM
        yield Case(f"rope and KV write, {rows} rows", "rope_store", moved, operations, partial(_ropes, rows))


def _norms(rows: int, library: Library) -> list[Call]:
    weight, turns = drawn(HIDDEN), sets(8 * rows * HIDDEN)
    return [partial(add_rms_norm, library, drawn(rows, HIDDEN), drawn(rows, HIDDEN), weight, 1e-5) for _ in turns]


def _gates(rows: int, library: Library) -> list[Call]:
    return [partial(gated_mul, library, drawn(rows, 2 * WIDE), "silu") for _ in sets(6 * rows * WIDE)]


def _ropes(rows: int, library: Library) -> list[Call]:
    cache, at = paged(1, max(rows, BLOCK), rows)
    angles = torch.rand(rows, HEAD_DIM, device="cuda")
    positions = torch.arange(rows, device="cuda")
    slots = at.block_tables[0].long()[positions // BLOCK] * BLOCK + positions % BLOCK
    calls: list[Call] = []
    for _ in sets(4 * rows * _ALL_HEADS * HEAD_DIM):
        q, k, v = torch.split(drawn(rows, _ALL_HEADS, HEAD_DIM), [HEADS, KV_HEADS, KV_HEADS], dim=1)
        calls.append(partial(rope_and_store, library, q, k, v, positions, angles, cache, 0, slots))
    return calls
