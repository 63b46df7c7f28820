"""RMS norms: their weights, and those between which and products nothing stands."""

from __future__ import annotations

import torch

from engine.layers.weights import Weights
from engine.ops.registry import OpTable
from engine.ops.signatures import LinearRows, RowsForm


def take_norm(weights: Weights, name: str, size: int, offset: float) -> torch.Tensor:
    """The norm `name` of `[size]`, ready for the operation."""
    return with_offset(weights.take(name, (size,)), offset)


def with_offset(stored: torch.Tensor, offset: float) -> torch.Tensor:
    """The weight as stored, or in float32 with the offset added: a narrower type could not hold the sum."""
    return stored.float() + offset if offset else stored


class Norm:
    """An RMS norm whose result goes into products, in the form that these take."""

    def __init__(self, ops: OpTable, weight: torch.Tensor, eps: float, form: RowsForm | None) -> None:
        """`form`: of the products' weights, see `signatures.FusedRows`."""
        self._ops, self._weight, self._eps, self._form = ops, weight, eps, form

    def __call__(self, x: torch.Tensor) -> LinearRows:
        """See `signatures.RmsNormOp`."""
        fused = self._ops.fused
        if fused is None or self._form is None:
            return self._ops.rms_norm(x, self._weight, self._eps)
        return fused.rms_norm(x, self._weight, self._eps, self._form)

    def add(self, update: torch.Tensor, residual: torch.Tensor) -> tuple[LinearRows, torch.Tensor]:
        """See `signatures.AddRmsNormOp`."""
        fused = self._ops.fused
        if fused is None or self._form is None:
            return self._ops.add_rms_norm(update, residual, self._weight, self._eps)
        return fused.add_rms_norm(update, residual, self._weight, self._eps, self._form)
