"""FP8: rows to codes, and products of codes beside torch's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.cases.case import HIDDEN, WIDE, Call, Case, drawn, sets
from engine.ops.cuda.fp8 import E4M3, Fp8Kernel, gated_mul_fp8, gemm_fp8, gemm_fp8_weights, quantise_rows, rms_norm_fp8
from engine.ops.cuda.fp8_reference import BLOCK, Fp8Matrix, Scaling, empty_block_scales
from engine.ops.cuda.library import Library

_WEIGHTS = {
    "qkv": (6144, HIDDEN),
    "output": (HIDDEN, HIDDEN),
    "gate and up": (2 * WIDE, HIDDEN),
    "down": (HIDDEN, WIDE),
}
"""(outputs, inputs)"""
_ROWS = (1, 64, 1024, 8192)
_FEW_ROWS = 64
_FAST = (2, 3)


def cases() -> Iterator[Case]:
    scalings: tuple[Scaling, ...] = ("rows", "blocks")
    for rows, scaling in itertools.product((64, 8192), scalings):
        yield from _row_cases(rows, scaling)
    for (name, (n, k)), m in itertools.product(_WEIGHTS.items(), _ROWS):
        few = m <= _FEW_ROWS
        moved, operations = m * k + n * k + 2 * m * n, 2 * m * n * k
        whole: tuple[Scaling, ...] = ("rows",) if few else ("rows", "tensor")
        for scaling, tile in itertools.product(whole, (0,) if few else (1, *_FAST)):
            rival = partial(_torch_products, m, n, k, scaling, tile in _FAST)
            group, goal = f"{name} product of codes, {m} rows, scales of {scaling}", "" if few else "fp8 products"
            yield Case(
                f"{group}, tile {tile}", "gemm_fp8_sm90", moved, operations,
                partial(_products, m, n, k, scaling, tile), rival, "torch._scaled_mm", "fp8", goal, group,
                tile not in _FAST,
            )  # fmt: skip
        kernel: Fp8Kernel = "gemm_fp8_blocks_sm90"
        make = partial(_products, m, n, k, "blocks", 0 if few else 1)
        title = f"{name} product of codes, {m} rows, scales of blocks"
        yield Case(title, kernel, moved, operations, make, precision="fp8")
        make = partial(_weight_products, m, n, k, 0 if few else 1)
        moved += m * k
        rival = partial(_bfloat16_products, m, n, k)
        yield Case(
            f"{name} product, {m} rows, weights in codes", "gemm_fp8_weights", moved, operations, make, rival,
            "torch, weights in bfloat16",
        )  # fmt: skip


def _row_cases(rows: int, scaling: Scaling) -> Iterator[Case]:
    hidden, wide = rows * HIDDEN, rows * WIDE
    yield Case(
        f"rows to codes, {rows} rows, scales of {scaling}", "quantise_fp8", 3 * hidden, 10 * hidden,
        partial(_turns, 3 * hidden, lambda library: partial(quantise_rows, library, drawn(rows, HIDDEN), scaling)),
    )  # fmt: skip
    weight = partial(drawn, HIDDEN)
    yield Case(
        f"add, RMSNorm and codes, {rows} rows, scales of {scaling}", "rms_norm_fp8", 7 * hidden, 15 * hidden,
        partial(_turns, 7 * hidden, lambda library: partial(
            rms_norm_fp8, library, drawn(rows, HIDDEN), weight(), 1e-5, scaling, residual=drawn(rows, HIDDEN)
        )),
    )  # fmt: skip
    yield Case(
        f"SwiGLU and codes, {rows} rows, scales of {scaling}", "gated_mul_fp8", 5 * wide, 25 * wide,
        partial(_turns, 5 * wide, lambda library: partial(
            gated_mul_fp8, library, drawn(rows, 2 * WIDE), "silu", scaling
        )),
    )  # fmt: skip


def _turns(moved: int, make: Callable[[Library], Call], library: Library) -> list[Call]:
    return [make(library) for _ in sets(moved)]


def _codes(rows: int, size: int) -> torch.Tensor:
    return drawn(rows, size).to(E4M3)


def _of_rows_or_tensor(rows: int, size: int, scaling: Scaling) -> Fp8Matrix:
    count = rows if scaling == "rows" else 1
    return Fp8Matrix(_codes(rows, size), torch.rand(count, device="cuda") / size**0.5, scaling)


def _weight(n: int, k: int, scaling: Scaling) -> Fp8Matrix:
    if scaling != "blocks":
        return _of_rows_or_tensor(n, k, scaling)
    return Fp8Matrix(_codes(n, k), torch.rand(-(-n // BLOCK), -(-k // BLOCK), device="cuda") / k**0.5, scaling)


def _activations(m: int, k: int, scaling: Scaling) -> Fp8Matrix:
    if scaling != "blocks":
        return _of_rows_or_tensor(m, k, scaling)
    scales = empty_block_scales(m, k, torch.device("cuda"))
    return Fp8Matrix(_codes(m, k), scales.uniform_(0.5, 1.5), scaling)


def _products(m: int, n: int, k: int, scaling: Scaling, tile: int, library: Library) -> list[Call]:
    return [
        partial(gemm_fp8, library, _activations(m, k, scaling), _weight(n, k, scaling), tile=tile)
        for _ in sets(m * k + n * k + 2 * m * n)
    ]


def _weight_products(m: int, n: int, k: int, tile: int, library: Library) -> list[Call]:
    return [
        partial(gemm_fp8_weights, library, drawn(m, k), _weight(n, k, "rows"), tile=tile)
        for _ in sets(2 * m * k + n * k + 2 * m * n)
    ]


def _bfloat16_products(m: int, n: int, k: int) -> list[Call]:
    return [partial(torch.nn.functional.linear, drawn(m, k), drawn(n, k)) for _ in sets(2 * (m * k + n * k + m * n))]


def _torch_products(m: int, n: int, k: int, scaling: Scaling, fast: bool) -> list[Call]:
    """The same scales and the same way to sum; torch takes scales of rows as a column and a row."""
    of_x, of_w = ((-1, 1), (1, -1)) if scaling == "rows" else ((), ())
    calls: list[Call] = []
    for _ in sets(m * k + n * k + 2 * m * n):
        x, w = _activations(m, k, scaling), _weight(n, k, scaling)
        calls.append(
            partial(
                torch._scaled_mm, x.codes, w.codes.t(), scale_a=x.scales.view(of_x), scale_b=w.scales.view(of_w),
                out_dtype=torch.bfloat16, use_fast_accum=fast,
            )
        )  # fmt: skip
    return calls
