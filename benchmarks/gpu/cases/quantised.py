"""Products with quantised weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.cases.case import HIDDEN, WIDE, Call, Case, drawn, sets
from engine.ops.cuda.block_pack import NIBBLE_KINDS, PANEL_COLUMNS, SLICE_DEPTH, slice_bytes
from engine.ops.cuda.block_products import BlockWeight, block_gemm, quantise_rows, w4a16_gemm
from engine.ops.cuda.library import Library

_WEIGHTS = {"qkv": (6144, HIDDEN), "gate and up": (2 * WIDE, HIDDEN), "down": (HIDDEN, WIDE)}
"""(outputs, inputs)"""
_ROWS = (1, 64, 1024)
_KINDS = ("q4_0", "q4_1", "q8_0", "groups")


def cases() -> Iterator[Case]:
    for (name, (n, k)), m in itertools.product(_WEIGHTS.items(), _ROWS):
        for kind in _KINDS:
            weights = n * k * slice_bytes(kind) // (PANEL_COLUMNS * SLICE_DEPTH)
            moved, rival = weights + m * (k * 5 // 4 + 2 * n), partial(_torch_products, m, n, k)
            title, operations = f"{name} product, {m} rows, {kind}", 2 * m * n * k
            make = partial(_int8, m, n, k, kind, moved)
            yield Case(f"{title}, int8 activations", "block_gemm", moved, operations, make, rival, "torch in bf16")
            if kind in NIBBLE_KINDS:
                moved = weights + 2 * m * (k + n)
                make = partial(_bfloat16, m, n, k, kind, moved)
                yield Case(f"{title}, bf16 activations", "w4a16_gemm", moved, operations, make, rival, "torch in bf16")
    for m in _ROWS:
        moved = m * HIDDEN * 13 // 4
        yield Case(f"activations as int8, {m} rows", "quantise_rows", moved, 4 * m * HIDDEN, partial(_rows, m, moved))


def _weight(n: int, k: int, kind: str) -> BlockWeight:
    """Of random bits: scales are whatever fp16 they make, which costs the same time."""
    shape = (-(-n // PANEL_COLUMNS), -(-k // SLICE_DEPTH), slice_bytes(kind))
    return BlockWeight(torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda"), kind, n, k)


def _int8(m: int, n: int, k: int, kind: str, moved: int, library: Library) -> list[Call]:
    operands = [(quantise_rows(library, drawn(m, k)), _weight(n, k, kind)) for _ in sets(moved)]
    return [partial(block_gemm, library, x, weight) for x, weight in operands]


def _bfloat16(m: int, n: int, k: int, kind: str, moved: int, library: Library) -> list[Call]:
    operands = [(drawn(m, k), _weight(n, k, kind)) for _ in sets(moved)]
    return [partial(w4a16_gemm, library, x, weight) for x, weight in operands]


def _rows(m: int, moved: int, library: Library) -> list[Call]:
    return [partial(quantise_rows, library, drawn(m, HIDDEN)) for _ in sets(moved)]


def _torch_products(m: int, n: int, k: int) -> list[Call]:
    operands = [(drawn(m, k), drawn(n, k)) for _ in sets(2 * (m * k + n * k + m * n))]
    return [partial(torch.nn.functional.linear, x, w) for x, w in operands]
