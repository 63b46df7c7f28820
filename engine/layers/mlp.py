"""The gated MLP (SwiGLU, arXiv 2002.05202)."""

from __future__ import annotations

import torch

from engine.layers.linear import Linear
from engine.layers.weights import Weights
from engine.ops.registry import OpTable
from engine.ops.signatures import LinearRows, RowsForm
from engine.spec import MlpSpec


class GatedMlp:
    """`down(act(gate(x)) * up(x))`, gate and up in one product."""

    def __init__(self, spec: MlpSpec, hidden: int, name: str, ops: OpTable, weights: Weights) -> None:
        """`name` is the module's, for example `model.layers.0.mlp`."""
        wide = spec.intermediate_size
        self._ops = ops
        self._activation = spec.activation
        parts = [(f"{name}.gate_proj", wide), (f"{name}.up_proj", wide)]
        self.gate_up = Linear.load(ops, weights, parts, hidden, bias=spec.bias)
        self.down = Linear.load(ops, weights, [(f"{name}.down_proj", hidden)], wide, bias=spec.bias)

    @property
    def form(self) -> RowsForm | None:
        """See `Linear.form`."""
        return self.gate_up.form

    def __call__(self, x: LinearRows) -> torch.Tensor:
        """`[M, hidden]` to `[M, hidden]`."""
        wide, fused, form = self.gate_up(x), self._ops.fused, self.down.form
        if fused is None or form is None:
            return self.down(self._ops.gated_mul(wide, self._activation))
        return self.down(fused.gated_mul(wide, self._activation, form))
