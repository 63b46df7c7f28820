"""A mixture of experts: every token goes through the few MLPs its router chooses (arXiv 1701.06538)."""

from __future__ import annotations

import torch

from engine.layers.mlp import GatedMlp
from engine.layers.weights import Weights
from engine.ops.registry import OpTable
from engine.spec import MoeSpec


class MixtureOfExperts:
    """Router, experts and, beside them, the MLP shared by all tokens.

    Tokens are gathered by expert, so that each expert's weights are read once a step. What an expert makes of a token
    does not depend on who else chose it (see `LinearOp`), and a token's sum runs from its first choice to its last:
    neighbours change no bit.
    """

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
        self._experts = [
            GatedMlp(spec.expert, hidden, f"{name}.experts.{expert}", ops, weights)
            for expert in range(routing.num_experts)
        ]
        shared = spec.shared
        self._shared = None if shared is None else GatedMlp(shared, hidden, f"{name}.shared_experts", ops, weights)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[M, hidden]` to `[M, hidden]`; weighted sums in float32, rounded once."""
        logits = self._ops.lm_head(x, self._router)
        if self._logit_bias is not None:
            logits = logits + self._logit_bias
        experts, weights = self._ops.route(self._routing, logits, self._score_bias)
        chosen = self._chosen(x, experts).view(*experts.shape, -1)
        total = chosen[:, 0].float() * weights[:, :1]
        for rank in range(1, self._routing.top_k):
            total += chosen[:, rank].float() * weights[:, rank : rank + 1]
        if self._shared is not None:
            total += self._shared(x)
        return total.to(x.dtype)

    def _chosen(self, x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """What each token's choices make of it: `[M * top_k, hidden]`, a token's choices one after another."""
        order = experts.flatten().argsort(stable=True)
        tokens = order // experts.shape[1]
        counts = experts.flatten().bincount(minlength=len(self._experts)).tolist()
        out = x.new_empty(len(order), x.shape[1])
        first = 0
        for expert, count in enumerate(counts):
            if count:
                rows = slice(first, first + count)
                out[order[rows]] = self._experts[expert](x[tokens[rows]])
                first += count
        return out


def _per_expert(weights: Weights, name: str, num_experts: int, wanted: bool) -> torch.Tensor | None:
    return weights.take(name, (num_experts,), torch.float32) if wanted else None
