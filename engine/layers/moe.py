"""A mixture of experts: every token goes through the few MLPs its router chooses (arXiv 1701.06538)."""

from __future__ import annotations

import torch

from engine.layers.mlp import GatedMlp
from engine.layers.weights import Weights
from engine.ops.registry import OpTable
from engine.ops.weight_matrix import ExpertMatrices
from engine.spec import MlpSpec, MoeSpec


class MixtureOfExperts:
    """Router, experts and, beside them, the MLP shared by all tokens. Neighbours change no bit of a token's row."""

    def __init__(self, spec: MoeSpec, hidden_size: int, name: str, ops: OpTable, weights: Weights) -> None:
        """`name`: of the module, for example `model.layers.3.mlp`."""
        routing, hidden = spec.routing, hidden_size
        self._routing = routing
        self._ops = ops
        shape = (routing.num_experts, hidden)
        self._router = ops.pack_lm_head(weights.take_matrix(f"{name}.gate.weight", shape, ops.lm_head_kinds))
        self._logit_bias = _per_expert(weights, f"{name}.gate.bias", routing.num_experts, routing.logit_bias)
        correction = f"{name}.gate.e_score_correction_bias"
        self._score_bias = _per_expert(weights, correction, routing.num_experts, routing.score_bias)
        self._activation = spec.expert.activation
        one_by_one = (
            _expert(weights, f"{name}.experts.{expert}", spec.expert, hidden, ops.expert_kinds)
            for expert in range(routing.num_experts)
        )
        self._experts = ops.pack_experts(one_by_one, routing.num_experts)
        shared = spec.shared
        self._shared = None if shared is None else GatedMlp(shared, hidden, f"{name}.shared_experts", ops, weights)

    @property
    def form(self) -> None:
        """See `Linear.form`: a router takes tensors, and so do experts."""
        return None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[M, hidden]` to `[M, hidden]`; weighted sums in float32, rounded once."""
        logits = self._ops.lm_head(x, self._router)
        if self._logit_bias is not None:
            logits = logits + self._logit_bias
        experts, weights = self._ops.route(self._routing, logits, self._score_bias)
        shared = None if self._shared is None else self._shared(x)
        return self._ops.experts(x, experts, weights, self._experts, self._activation, shared)


def _expert(weights: Weights, name: str, spec: MlpSpec, hidden: int, kinds: frozenset[str]) -> ExpertMatrices:
    wide = spec.intermediate_size
    shapes = {"gate_proj": (wide, hidden), "up_proj": (wide, hidden), "down_proj": (hidden, wide)}
    gate, up, down = (weights.take_matrix(f"{name}.{part}.weight", shape, kinds) for part, shape in shapes.items())
    if not spec.bias:
        return ExpertMatrices(gate, up, down)
    biases = [weights.take(f"{name}.{part}.bias", (rows,)) for part, (rows, _) in shapes.items()]
    return ExpertMatrices(gate, up, down, torch.cat(biases[:2]), biases[2])


def _per_expert(weights: Weights, name: str, num_experts: int, wanted: bool) -> torch.Tensor | None:
    return weights.take(name, (num_experts,), torch.float32) if wanted else None
