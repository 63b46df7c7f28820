"""Operators of mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.ops.cuda import experts
from engine.ops.cuda.fp8_expert_steps import Fp8ExpertStacks, experts_of_codes, fp8_experts
from engine.ops.cuda.fp8_products import Fp8Rows
from engine.ops.cuda.grouped_fp8_weights import Fp8Stack
from engine.ops.cuda.library import Library
from engine.ops.cuda.route import route
from engine.spec import Activation, RoutingSpec

SCHEMAS = {
    "route": "(Tensor logits, Tensor? score_bias, int top_k, str scores, bool normalise, float scale=1.0,"
    " int num_groups=1, int top_groups=1, str group_score='max') -> (Tensor, Tensor)",
    "experts": "(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor down, str activation,"
    " Tensor? gate_up_bias=None, Tensor? down_bias=None, Tensor? shared=None, str kernel='grouped_gemm') -> Tensor",
    "experts_fp8": "(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor gate_up_scales, Tensor down,"
    " Tensor down_scales, str scaling, str activation, Tensor? gate_up_bias=None, Tensor? down_bias=None,"
    " Tensor? shared=None, str rows='bfloat16', int tile=0) -> Tensor",
}


def implementations(library: Library) -> dict[str, Callable[..., Any]]:
    def choose(
        logits: torch.Tensor, score_bias: torch.Tensor | None, top_k: int, scores: Any, normalise: bool,
        scale: float = 1.0, num_groups: int = 1, top_groups: int = 1, group_score: Any = "max",
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        spec = RoutingSpec(logits.shape[1], top_k, scores, normalise, scale, num_groups, top_groups, group_score)
        return route(library, spec, logits, score_bias)

    def mixture(
        x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
        activation: Activation, gate_up_bias: torch.Tensor | None = None, down_bias: torch.Tensor | None = None,
        shared: torch.Tensor | None = None, kernel: experts.GroupedKernel = "grouped_gemm",
    ) -> torch.Tensor:  # fmt: skip
        packed = experts.ExpertStacks(gate_up, down, gate_up_bias, down_bias)
        return experts.experts(library, x, ids, weights, packed, activation, shared, kernel=kernel)

    def mixture_fp8(
        x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, gate_up_scales: torch.Tensor,
        down: torch.Tensor, down_scales: torch.Tensor, scaling: Any, activation: Activation,
        gate_up_bias: torch.Tensor | None = None, down_bias: torch.Tensor | None = None,
        shared: torch.Tensor | None = None, rows: Fp8Rows = "bfloat16", tile: int = 0,
    ) -> torch.Tensor:  # fmt: skip
        stacks = Fp8Stack(gate_up, gate_up_scales, scaling), Fp8Stack(down, down_scales, scaling)
        packed = Fp8ExpertStacks(*stacks, gate_up_bias, down_bias, rows)
        if rows == "codes":
            return experts_of_codes(library, x, ids, weights, packed, activation, shared, tile=tile)
        return fp8_experts(library, x, ids, weights, packed, activation, shared)

    return {"route": choose, "experts": mixture, "experts_fp8": mixture_fp8}


def fakes() -> dict[str, Callable[..., Any]]:
    def choices(logits: torch.Tensor, _: object, top_k: int, *__: object, **___: object) -> Any:
        chosen = logits.new_empty(logits.shape[0], top_k, dtype=torch.int64)
        return chosen, torch.empty_like(chosen, dtype=torch.float32)

    def mixture(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return x.new_empty(x.shape)

    return {"route": choices, "experts": mixture, "experts_fp8": mixture}
