"""Operands of products of e4m3 codes."""

from __future__ import annotations

import numpy as np
import torch

from engine.ops.cuda.fp8_reference import Fp8Matrix, Scaling, activation_values, quantise_weight, weight_values
from engine.ops.cuda.grouped_fp8_weights import Fp8Stack
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import Permutation
from engine.ops.weight_matrix import QuantizedMatrix

SCALINGS = ("tensor", "rows", "blocks")
ROUNDING = 4e-3
"""Relative error of one rounding to bfloat16."""


def on_device(matrix: Fp8Matrix, device: torch.device) -> Fp8Matrix:
    scales = torch.empty_strided(matrix.scales.shape, matrix.scales.stride(), dtype=torch.float32, device=device)
    return Fp8Matrix(matrix.codes.to(device), scales.copy_(matrix.scales), matrix.scaling)


def wide_operands(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, a weight whose rows and blocks differ in size, and a bias."""
    generator = torch.Generator().manual_seed(m + n + k)
    x, w = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator) / k**0.5
    w *= torch.exp2(torch.arange(n) % 7 - 3.0)[:, None]
    return x.bfloat16(), w, torch.randn(n, generator=generator).bfloat16()


def as_stored(matrix: Fp8Matrix, input_scale: float | None = None) -> QuantizedMatrix:
    """A weight as a file's reader hands it on."""
    rows, columns = matrix.codes.shape
    codes = matrix.codes.cpu().view(torch.uint8).numpy()
    return QuantizedMatrix(f"fp8_{matrix.scaling}", (rows, columns), codes, matrix.scales.cpu().numpy(), input_scale)


def stored_matrix(wide: torch.Tensor, scaling: Scaling, input_scale: float | None = None) -> QuantizedMatrix:
    return as_stored(quantise_weight(wide, scaling), input_scale)


def values_of(matrix: QuantizedMatrix) -> torch.Tensor:
    """float64 `[n, k]`."""
    codes = torch.from_numpy(np.array(matrix.blocks)).view(torch.float8_e4m3fn)
    scaling = matrix.kind.removeprefix("fp8_")
    return weight_values(Fp8Matrix(codes, torch.from_numpy(np.array(matrix.scales)), scaling))


def exact_product(
    library: Library, x: Fp8Matrix, weight: Fp8Matrix, bias: torch.Tensor | None, *, tile: int
) -> torch.Tensor:
    """What `gemm_fp8` rounds, one row at a time: for where there are no matrix units for codes."""
    wide, matrix = activation_values(x), weight_values(weight).t()
    rows = torch.cat([row[None] @ matrix for row in wide]) if len(wide) else wide @ matrix
    return (rows if bias is None else rows + bias.double()).bfloat16()


def exact_groups(
    library: Library, x: Fp8Matrix, weight: Fp8Stack, permutation: Permutation, *, tile: int
) -> torch.Tensor:
    """What `grouped_fp8` rounds, one row at a time; rows that no choice fills are NaN."""
    shape = permutation.rows, weight.codes.shape[1]
    y = torch.full(shape, float("nan"), dtype=torch.bfloat16, device=x.codes.device)
    rows = activation_values(x)
    spans = zip(permutation.offsets.tolist(), permutation.counts.tolist(), strict=True)
    for expert, (first, count) in enumerate(spans):
        matrix = weight_values(Fp8Matrix(weight.codes[expert], weight.scales[expert], weight.scaling)).t()
        for row in range(first, first + count):
            y[row] = (rows[row : row + 1] @ matrix)[0]
    return y
