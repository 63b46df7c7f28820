"""The gated MLP (SwiGLU, arXiv 2002.05202)."""

from __future__ import annotations

import torch

from engine.layers.linear import Linear
from engine.layers.weights import Weights
from engine.ops.registry import OpTable
from engine.spec import ModelSpec


class GatedMlp:
    """`down(silu(gate(x)) * up(x))`, gate and up in one product."""

    def __init__(self, spec: ModelSpec, layer: int, ops: OpTable, weights: Weights) -> None:
        name = f"model.layers.{layer}.mlp"
        wide, hidden = spec.intermediate_size, spec.hidden_size
        self._silu_mul = ops.silu_mul
        self.gate_up = Linear.load(
            ops, weights, [(f"{name}.gate_proj", wide), (f"{name}.up_proj", wide)], hidden, bias=spec.mlp_bias
        )
        self.down = Linear.load(ops, weights, [(f"{name}.down_proj", hidden)], wide, bias=spec.mlp_bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[M, hidden]` to `[M, hidden]`."""
        return self.down(self._silu_mul(self.gate_up(x)))
