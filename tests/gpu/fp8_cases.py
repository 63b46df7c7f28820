"""Operands of products of e4m3 codes."""

from __future__ import annotations

import torch

from engine.ops.cuda.fp8_reference import Fp8Matrix

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
