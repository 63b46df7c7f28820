"""Matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.cases.case import HIDDEN, WIDE, Call, Case, drawn, sets
from engine.ops.cuda.gemm import TILES, GemmKernel, gemm
from engine.ops.cuda.library import Library

_WEIGHTS = {
    "qkv": (6144, HIDDEN),
    "output": (HIDDEN, HIDDEN),
    "gate and up": (2 * WIDE, HIDDEN),
    "down": (HIDDEN, WIDE),
}
"""(outputs, inputs)"""
_ROWS = (1, 64, 1024, 2048, 8192)
_FEW_ROWS = 64
_KERNELS: tuple[GemmKernel, ...] = ("gemm_sm90", "gemm_sm80")
_EXACT = ("gemm_sm90", 1)
"""What the exact mode takes, unless it is told to try."""


def cases() -> Iterator[Case]:
    for (name, (n, k)), m, kernel in itertools.product(_WEIGHTS.items(), _ROWS, _KERNELS):
        moved, rival = 2 * (m * k + n * k + m * n), partial(_torch_products, m, n, k)
        group, goal = f"{name} product, {m} rows", "" if m <= _FEW_ROWS else "bf16 products"
        for tile in (0,) if m <= _FEW_ROWS else range(1, TILES[kernel]):
            make = partial(_products, m, n, k, kernel, tile)
            yield Case(
                f"{group}, {kernel} tile {tile}", kernel, moved, 2 * m * n * k, make, rival, "torch", goal=goal,
                group=group, is_exact=(kernel, tile) == _EXACT,
            )  # fmt: skip


def _operands(m: int, n: int, k: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(drawn(m, k), drawn(n, k)) for _ in sets(2 * (m * k + n * k + m * n))]


def _products(m: int, n: int, k: int, kernel: GemmKernel, tile: int, library: Library) -> list[Call]:
    return [partial(gemm, library, x, w, kernel=kernel, tile=tile) for x, w in _operands(m, n, k)]


def _torch_products(m: int, n: int, k: int) -> list[Call]:
    return [partial(torch.nn.functional.linear, x, w) for x, w in _operands(m, n, k)]
