"""A mixture's experts over any product of one matrix: tokens gathered by expert, each expert's weights read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from engine.ops.signatures import GatedMulOp, LinearOp, PackedWeight, PackOp
from engine.ops.weight_matrix import ExpertMatrices
from engine.spec import Activation


@dataclass(frozen=True, slots=True)
class _Expert:
    gate_up: PackedWeight
    down: PackedWeight
    gate_up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None


class GatheredExperts:
    """`ExpertsOp` and its `PackExpertsOp`. What an expert makes of a token does not depend on who else chose it, as
    `LinearOp` promises. How many tokens each has is read on the host."""

    def __init__(self, linear: LinearOp, pack_linear: PackOp, gated_mul: GatedMulOp) -> None:
        self._linear, self._pack_linear, self._gated_mul = linear, pack_linear, gated_mul

    def pack(self, experts: Iterable[ExpertMatrices], count: int) -> Sequence[_Expert]:
        """See `signatures.PackExpertsOp`."""
        return [
            _Expert(self._pack_linear(one.gate, one.up), self._pack_linear(one.down), one.gate_up_bias, one.down_bias)
            for one, _ in zip(experts, range(count), strict=True)
        ]

    def __call__(
        self,
        x: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        packed: Sequence[_Expert],
        activation: Activation,
        shared: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `signatures.ExpertsOp`."""

        def through(expert: int, rows: torch.Tensor) -> torch.Tensor:
            own = packed[expert]
            wide = self._linear(rows, own.gate_up, own.gate_up_bias)
            return self._linear(self._gated_mul(wide, activation), own.down, own.down_bias)

        chosen = _by_expert(x, experts, len(packed), through).view(*experts.shape, -1)
        return weighted_sum(chosen, weights, shared)


def weighted_sum(chosen: torch.Tensor, weights: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
    """Of `chosen` `[M, top_k, hidden]`, in float32 from the first choice to the last, `shared` at the end; rounded
    once: `[M, hidden]` in its dtype."""
    total = chosen[:, 0].float() * weights[:, :1]
    for rank in range(1, chosen.shape[1]):
        total += chosen[:, rank].float() * weights[:, rank : rank + 1]
    if shared is not None:
        total += shared
    return total.to(chosen.dtype)


def _by_expert(
    x: torch.Tensor, experts: torch.Tensor, count: int, through: Callable[[int, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """What each token's choices make of it: `[M * top_k, hidden]`, a token's choices one after another."""
    order = experts.flatten().argsort(stable=True)
    tokens = order // experts.shape[1]
    out = x.new_empty(len(order), x.shape[1])
    first = 0
    for expert, rows in enumerate(experts.flatten().bincount(minlength=count).tolist()):
        if rows:
            own = slice(first, first + rows)
            out[order[own]] = through(expert, x[tokens[own]])
            first += rows
    return out
