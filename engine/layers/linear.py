"""A linear layer, possibly several of a model's matrices fused into one product."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.layers.weights import Weights
from engine.ops.registry import OpTable
from engine.ops.signatures import LinearRows, RowsForm
from engine.ops.weight_matrix import WeightMatrix


class Linear:
    """`y = x W^T + b`. Parts that read the same input are stacked by rows: one product instead of several."""

    def __init__(self, ops: OpTable, parts: Sequence[WeightMatrix], bias: torch.Tensor | None = None) -> None:
        self._op = ops.linear
        self._weight = ops.pack_linear(*parts)
        self._bias = bias
        self.form: RowsForm | None = None if ops.fused is None else ops.fused.form(self._weight)
        """Which rows it takes beside tensors."""

    @classmethod
    def load(
        cls, ops: OpTable, weights: Weights, parts: Sequence[tuple[str, int]], in_features: int, *, bias: bool
    ) -> Linear:
        """`parts` are (module name, out_features), stacked in that order."""
        kinds = ops.linear_kinds
        matrices = [weights.take_matrix(f"{name}.weight", (rows, in_features), kinds) for name, rows in parts]
        biases = [weights.take(f"{name}.bias", (rows,)) for name, rows in parts] if bias else []
        return cls(ops, matrices, torch.cat(biases) if biases else None)

    def __call__(self, x: LinearRows) -> torch.Tensor:
        """`[M, in_features]` to `[M, out_features]`, same dtype. `x` is a tensor, or of its `form`."""
        return self._op(x, self._weight, self._bias)
