"""Operators of FP8. They know tensors and no `Fp8Matrix`: codes and scales stand side by side.

Where the scaling is `tensor` the scale was the caller's, and an operator may not give back what it was given: its
second result is empty then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.ops.cuda import fp8
from engine.ops.cuda.fp8_reference import Fp8Matrix, Scaling, empty_block_scales
from engine.ops.cuda.library import Library
from engine.spec import Activation

_SCALED = "str scaling, Tensor? scale=None) -> (Tensor, Tensor)"
_WEIGHT = "Tensor weight, Tensor weight_scales, str weight_scaling, Tensor? bias, int tile) -> Tensor"
SCHEMAS = {
    "quantise_fp8": f"(Tensor x, {_SCALED}",
    "rms_norm_fp8": f"(Tensor x, Tensor weight, float eps, {_SCALED}",
    "add_rms_norm_fp8": f"(Tensor x, Tensor(a!) residual, Tensor weight, float eps, {_SCALED}",
    "gated_mul_fp8": f"(Tensor gate_up, str activation, {_SCALED}",
    "gemm_fp8": f"(Tensor x, Tensor x_scales, str x_scaling, {_WEIGHT}",
    "gemm_fp8_weights": f"(Tensor x, {_WEIGHT}",
}
_Parts = tuple[torch.Tensor, torch.Tensor]


def implementations(library: Library) -> dict[str, Callable[..., Any]]:
    def quantise(x: torch.Tensor, scaling: Scaling, scale: torch.Tensor | None = None) -> _Parts:
        return _parts(fp8.quantise_rows(library, x, scaling, scale))

    def norm(
        x: torch.Tensor, weight: torch.Tensor, eps: float, scaling: Scaling, scale: torch.Tensor | None = None
    ) -> _Parts:
        return _parts(fp8.rms_norm_fp8(library, x, weight, eps, scaling, scale=scale))

    def add_norm(
        x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, scaling: Scaling,
        scale: torch.Tensor | None = None,
    ) -> _Parts:  # fmt: skip
        return _parts(fp8.rms_norm_fp8(library, x, weight, eps, scaling, residual=residual, scale=scale))

    def gate(
        gate_up: torch.Tensor, activation: Activation, scaling: Scaling, scale: torch.Tensor | None = None
    ) -> _Parts:
        return _parts(fp8.gated_mul_fp8(library, gate_up, activation, scaling, scale=scale))

    def product(
        x: torch.Tensor, x_scales: torch.Tensor, x_scaling: Scaling, weight: torch.Tensor, scales: torch.Tensor,
        scaling: Scaling, bias: torch.Tensor | None, tile: int,
    ) -> torch.Tensor:  # fmt: skip
        both = Fp8Matrix(x, x_scales, x_scaling), Fp8Matrix(weight, scales, scaling)
        return fp8.gemm_fp8(library, *both, bias, tile=tile)

    def weights(
        x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, scaling: Scaling, bias: torch.Tensor | None,
        tile: int,
    ) -> torch.Tensor:  # fmt: skip
        return fp8.gemm_fp8_weights(library, x, Fp8Matrix(weight, scales, scaling), bias, tile=tile)

    return dict(zip(SCHEMAS, (quantise, norm, add_norm, gate, product, weights), strict=True))


def fakes() -> dict[str, Callable[..., Any]]:
    def rows(x: torch.Tensor, scaling: Scaling, size: int) -> _Parts:
        codes = x.new_empty(x.shape[0], size, dtype=fp8.E4M3)
        if scaling == "blocks":
            return codes, empty_block_scales(x.shape[0], size, x.device)
        return codes, x.new_empty(x.shape[0] if scaling == "rows" else 0, dtype=torch.float32)

    def quantise(x: torch.Tensor, scaling: Scaling, scale: object = None) -> _Parts:
        return rows(x, scaling, x.shape[1])

    def norm(x: torch.Tensor, weight: object, eps: float, scaling: Scaling, scale: object = None) -> _Parts:
        return rows(x, scaling, x.shape[1])

    def add_norm(
        x: torch.Tensor, residual: object, weight: object, eps: float, scaling: Scaling, scale: object = None
    ) -> _Parts:
        return rows(x, scaling, x.shape[1])

    def gate(gate_up: torch.Tensor, activation: str, scaling: Scaling, scale: object = None) -> _Parts:
        return rows(gate_up, scaling, gate_up.shape[1] // 2)

    def product(
        x: torch.Tensor, x_scales: object, x_scaling: str, weight: torch.Tensor, scales: object, scaling: str,
        bias: object, tile: int,
    ) -> torch.Tensor:  # fmt: skip
        return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.bfloat16)

    def weights(
        x: torch.Tensor, weight: torch.Tensor, scales: object, scaling: str, bias: object, tile: int
    ) -> torch.Tensor:
        return x.new_empty(x.shape[0], weight.shape[0])

    return dict(zip(SCHEMAS, (quantise, norm, add_norm, gate, product, weights), strict=True))


def _parts(found: Fp8Matrix) -> _Parts:
    return found.codes, found.scales.new_empty(0) if found.scaling == "tensor" else found.scales
