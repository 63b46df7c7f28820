"""One block of a decoder: norm, attention, norm, MLP."""

from __future__ import annotations

import torch

from engine.layers.attention import Attention
from engine.layers.latent_attention import LatentAttention
from engine.layers.mlp import GatedMlp
from engine.layers.moe import MixtureOfExperts
from engine.layers.norm import Norm, take_norm
from engine.layers.rope import RopeTables
from engine.layers.weights import Weights
from engine.ops.registry import OpTable
from engine.spec import AttentionSpec, LatentAttentionSpec, MlpSpec, ModelSpec, MoeSpec
from engine.steps.step_plan import StepPlan


class Block:
    """Layer `layer` of a model. The residual sum is deferred to the next norm, which fuses it."""

    def __init__(self, model: ModelSpec, layer: int, ops: OpTable, weights: Weights, tables: RopeTables) -> None:
        spec, name, hidden = model.layers[layer], f"model.layers.{layer}", model.hidden_size

        def norm(module: str) -> torch.Tensor:
            return take_norm(weights, f"{name}.{module}.weight", hidden, model.norm_offset)

        self._ops = ops
        self._eps = model.rms_norm_eps
        input_norm = norm("input_layernorm")
        self._attention = _attention(model, spec.attention, layer, ops, weights, tables)
        self._input_norm = Norm(ops, input_norm, self._eps, self._attention.form)
        mlp_norm = norm("post_attention_layernorm")
        self._mlp = _mlp(spec.mlp, hidden, f"{name}.mlp", ops, weights)
        self._mlp_norm = Norm(ops, mlp_norm, self._eps, self._mlp.form)
        self._attention_output_norm = norm("attention_output_norm") if spec.post_norms else None
        self._mlp_output_norm = norm("mlp_output_norm") if spec.post_norms else None

    @property
    def pushes(self) -> bool:
        """Whether `plan.peers` may be given."""
        return self._attention.pushes

    def __call__(
        self, update: torch.Tensor | None, residual: torch.Tensor, plan: StepPlan, kv_cache: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes and returns (what the block before adds to the residual stream, the stream), both `[M, hidden]`."""
        if update is None:
            normed = self._input_norm(residual)
        else:
            normed, residual = self._input_norm.add(update, residual)
        attended = self._normed(self._attention(normed, plan, kv_cache), self._attention_output_norm)
        normed, residual = self._mlp_norm.add(attended, residual)
        return self._normed(self._mlp(normed), self._mlp_output_norm), residual

    def _normed(self, update: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return update if weight is None else self._ops.rms_norm(update, weight, self._eps)


def _attention(
    model: ModelSpec,
    spec: AttentionSpec | LatentAttentionSpec,
    layer: int,
    ops: OpTable,
    weights: Weights,
    tables: RopeTables,
) -> Attention | LatentAttention:
    match spec:
        case AttentionSpec():
            return Attention(model, spec, layer, ops, weights, tables.table(spec.rope, spec.head_dim))
        case LatentAttentionSpec():
            return LatentAttention(model, spec, layer, ops, weights, tables.table(spec.rope, spec.qk_rope_head_dim))


def _mlp(
    spec: MlpSpec | MoeSpec, hidden: int, name: str, ops: OpTable, weights: Weights
) -> GatedMlp | MixtureOfExperts:
    match spec:
        case MlpSpec():
            return GatedMlp(spec, hidden, name, ops, weights)
        case MoeSpec():
            return MixtureOfExperts(spec, hidden, name, ops, weights)
