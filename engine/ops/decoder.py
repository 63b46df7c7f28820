"""What a table of operations needs to run a whole step of a decoder by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from engine.spec import ModelSpec
from engine.step_plan import StepPlan


@dataclass(frozen=True, slots=True)
class Projection:
    """A packed weight and its bias."""

    weight: Any
    """What the table's `pack_linear` returned."""
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer of grouped-query attention and a gated MLP; norms `[hidden]`, the offset of the spec added.

    What a spec does not ask for is None.
    """

    cos_sin: torch.Tensor
    """`[positions, rotary_dim]` float32; layers with one rope share one tensor."""
    input_norm: torch.Tensor
    qkv: Projection
    output: Projection
    mlp_norm: torch.Tensor
    gate_up: Projection
    down: Projection
    q_norm: torch.Tensor | None = None
    """`[head_dim]`, as `k_norm`."""
    k_norm: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    """`[num_heads]` float32."""
    attention_output_norm: torch.Tensor | None = None
    mlp_output_norm: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: Any
    """What the table's `pack_lm_head` returned, as `head`, which may be the same."""
    head: Any
    norm: torch.Tensor
    layers: Sequence[LayerWeights]


class DecoderStep(Protocol):
    def __call__(self, plan: StepPlan, kv_cache: torch.Tensor) -> torch.Tensor:
        """A step as `CausalLM.forward` describes it: float32 `[len(plan.logit_rows), vocab]`."""


class DecoderCompiler(Protocol):
    """Binds a model's weights into one call a step, with the bits of the operations taken one by one."""

    def obstacle(self, spec: ModelSpec) -> str | None:
        """Why it cannot compile this model, in words; None when it can."""

    def compile(self, spec: ModelSpec, weights: DecoderWeights) -> DecoderStep:
        """Only for a spec without an obstacle."""
