"""Products with quantised weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.cases.case import HIDDEN, WIDE, Call, Case, drawn, sets
from engine.ops.cuda.block_pack import PANEL_COLUMNS, SLICE_BYTES, SLICE_DEPTH
from engine.ops.cuda.block_products import TILE_ROWS, BlockWeight, block_gemm, quantise_rows, w4a16_gemm
from engine.ops.cuda.library import Library

_WEIGHTS = {"qkv": (6144, HIDDEN), "gate and up": (2 * WIDE, HIDDEN), "down": (HIDDEN, WIDE)}
"""(outputs, inputs)"""
_ALL_KINDS = "gate and up"
"""The one that is measured with every kind; the others with the most common."""
_COMMON = "q4_k"
_INT8, _BFLOAT16 = ("q4_0", "q4_1", "q4_k", "q6_k", "q8_0"), ("q4_0", "q4_k", "groups")
_ROWS = (1, 64, 1024)
_TILED_ROWS = 64
"""Where it is least clear which tile is fastest."""


def cases() -> Iterator[Case]:
    for name, m in itertools.product(_WEIGHTS, _ROWS):
        n, k = _WEIGHTS[name]
        for kind in _INT8 if name == _ALL_KINDS else (_COMMON,):
            yield _int8_case(name, m, kind, None)
        for kind in _BFLOAT16 if name == _ALL_KINDS else ():
            moved, make = _weight_bytes(n, k, kind) + 2 * m * (k + n), partial(_bfloat16, m, n, k, kind)
            title, rival = f"{name} product, {m} rows, {kind}, bf16 activations", partial(_torch_products, m, n, k)
            yield Case(title, "w4a16_gemm", moved, 2 * m * n * k, make, rival, "torch in bf16")
    for tile in range(len(TILE_ROWS)):
        yield _int8_case("down", _TILED_ROWS, _COMMON, tile)
    for m in _ROWS:
        make = partial(_rows, m)
        yield Case(f"activations as int8, {m} rows", "quantise_rows", m * HIDDEN * 13 // 4, 4 * m * HIDDEN, make)


def _int8_case(name: str, m: int, kind: str, tile: int | None) -> Case:
    n, k = _WEIGHTS[name]
    moved, make = _weight_bytes(n, k, kind) + m * (k * 5 // 4 + 2 * n), partial(_int8, m, n, k, kind, tile)
    title = f"{name} product, {m} rows, {kind}, int8 activations" + ("" if tile is None else f", tile {tile}")
    return Case(title, "block_gemm", moved, 2 * m * n * k, make, partial(_torch_products, m, n, k), "torch in bf16")


def _weight_bytes(n: int, k: int, kind: str) -> int:
    return n * k * SLICE_BYTES[kind] // (PANEL_COLUMNS * SLICE_DEPTH)


def _weight(n: int, k: int, kind: str) -> BlockWeight:
    """Of random bits: scales are whatever fp16 they make, which costs the same time."""
    shape = (-(-n // PANEL_COLUMNS), -(-k // SLICE_DEPTH), SLICE_BYTES[kind])
    return BlockWeight(torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda"), kind, n, k)


def _int8(m: int, n: int, k: int, kind: str, tile: int | None, library: Library) -> list[Call]:
    turns = sets(_weight_bytes(n, k, kind))
    operands = [(quantise_rows(library, drawn(m, k)), _weight(n, k, kind)) for _ in turns]
    return [partial(block_gemm, library, x, weight, tile=tile) for x, weight in operands]


def _bfloat16(m: int, n: int, k: int, kind: str, library: Library) -> list[Call]:
    operands = [(drawn(m, k), _weight(n, k, kind)) for _ in sets(_weight_bytes(n, k, kind))]
    return [partial(w4a16_gemm, library, x, weight) for x, weight in operands]


def _rows(m: int, library: Library) -> list[Call]:
    return [partial(quantise_rows, library, drawn(m, HIDDEN)) for _ in sets(m * HIDDEN * 13 // 4)]


def _torch_products(m: int, n: int, k: int) -> list[Call]:
    operands = [(drawn(m, k), drawn(n, k)) for _ in sets(2 * (m * k + n * k + m * n))]
    return [partial(torch.nn.functional.linear, x, w) for x, w in operands]
