"""Operators of products with quantised weights.

A weight is its bytes and what `BlockWeight` says of them: `Tensor weight, str kind, int n, int k`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.ops.cuda.block_products import (
    BF16,
    FLOAT32,
    BlockWeight,
    QuantisedRows,
    block_gemm,
    block_rows,
    quantise_rows,
    scale_stride,
    w4a16_gemm,
)
from engine.ops.cuda.library import Library

_WEIGHT = "Tensor weight, str kind, int n, int k"
_CHOICE = "Tensor? bias=None, int? tile=None, bool float32=False"
SCHEMAS = {
    "quantise_rows": "(Tensor x) -> (Tensor, Tensor)",
    "block_gemm": f"(Tensor quants, Tensor scales, {_WEIGHT}, {_CHOICE}) -> Tensor",
    "w4a16_gemm": f"(Tensor x, {_WEIGHT}, {_CHOICE}) -> Tensor",
    "block_rows": f"({_WEIGHT}, Tensor ids) -> Tensor",
}


def implementations(library: Library) -> dict[str, Callable[..., Any]]:
    def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = quantise_rows(library, x)
        return rows.quants, rows.scales

    def int8(
        quants: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, kind: str, n: int, k: int,
        bias: torch.Tensor | None = None, tile: int | None = None, float32: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        rows, matrix = QuantisedRows(quants, scales), BlockWeight(weight, kind, n, k)
        return block_gemm(library, rows, matrix, bias, tile=tile, out_dtype=FLOAT32 if float32 else BF16)

    def bfloat16(
        x: torch.Tensor, weight: torch.Tensor, kind: str, n: int, k: int, bias: torch.Tensor | None = None,
        tile: int | None = None, float32: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        matrix = BlockWeight(weight, kind, n, k)
        return w4a16_gemm(library, x, matrix, bias, tile=tile, out_dtype=FLOAT32 if float32 else BF16)

    def rows(weight: torch.Tensor, kind: str, n: int, k: int, ids: torch.Tensor) -> torch.Tensor:
        return block_rows(library, BlockWeight(weight, kind, n, k), ids)

    return {"quantise_rows": quantise, "block_gemm": int8, "w4a16_gemm": bfloat16, "block_rows": rows}


def fakes() -> dict[str, Callable[..., Any]]:
    def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        m, k = x.shape
        return x.new_empty(m, k, dtype=torch.int8), x.new_empty(2, m, scale_stride(k), dtype=FLOAT32)

    def int8(
        quants: torch.Tensor, scales: object, weight: object, kind: str, n: int, k: int, bias: object = None,
        tile: object = None, float32: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        return quants.new_empty(quants.shape[0], n, dtype=FLOAT32 if float32 else BF16)

    def bfloat16(
        x: torch.Tensor, weight: object, kind: str, n: int, k: int, bias: object = None, tile: object = None,
        float32: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        return x.new_empty(x.shape[0], n, dtype=FLOAT32 if float32 else BF16)

    def rows(weight: object, kind: str, n: int, k: int, ids: torch.Tensor) -> torch.Tensor:
        return ids.new_empty(ids.shape[0], k, dtype=FLOAT32)

    return {"quantise_rows": quantise, "block_gemm": int8, "w4a16_gemm": bfloat16, "block_rows": rows}
