"""What a table of operations needs to run a whole step of a decoder by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from engine.layers.step_plan import StepPlan
from engine.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Projection:
    """A packed weight and its bias."""

    weight: Any
    """What the table's `pack_linear` returned."""
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer of the Llama family; norms `[hidden]`."""

    input_norm: torch.Tensor
    qkv: Projection
    output: Projection
    mlp_norm: torch.Tensor
    gate_up: Projection
    down: Projection


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: Any
    """What the table's `pack_lm_head` returned, as `head`, which may be the same."""
    head: Any
    norm: torch.Tensor
    cos_sin: torch.Tensor
    """`[positions, head_dim]` float32."""
    layers: Sequence[LayerWeights]


class DecoderStep(Protocol):
    def __call__(self, plan: StepPlan, kv_cache: torch.Tensor) -> torch.Tensor:
        """A step as `CausalLM.forward` describes it: float32 `[len(plan.logit_rows), vocab]`."""


class CompileDecoder(Protocol):
    def __call__(self, spec: ModelSpec, weights: DecoderWeights) -> DecoderStep:
        """Binds a model's weights into one call a step, with the bits of the operations taken one by one."""
