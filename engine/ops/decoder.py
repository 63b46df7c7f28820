"""What it takes to run a whole step of a decoder in one call: its weights, and who compiles them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.spec import ModelSpec
from engine.steps.step_arrays import StepArrays

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Projection:
    """A packed weight and its bias."""

    weight: Any
    """What `native_kernels.pack` returned."""
    bias: Floats | None


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Of grouped-query attention. What a spec does not ask for is None."""

    cos_sin: Floats
    """`[positions, rotary_dim]` float32; layers with one rope share one array."""
    qkv: Projection
    output: Projection
    q_norm: Floats | None = None
    """`[head_dim]`, as `k_norm`."""
    k_norm: Floats | None = None
    sinks: Floats | None = None
    """`[num_heads]` float32."""


@dataclass(frozen=True, slots=True)
class LatentAttentionWeights:
    """Of latent attention, absorbed."""

    cos_sin: Floats
    """`[positions, qk_rope_head_dim]` float32, one array for all layers."""
    q_down: Projection | None
    q_norm: Floats | None
    """`[q_lora_rank]`."""
    q: Projection
    kv_down: Projection
    kv_norm: Floats
    """`[kv_lora_rank]`."""
    absorb: Any
    """What `native_kernels.pack_stack` returned, of every head `[kv_lora_rank, qk_nope_head_dim]`: it takes the head's
    query to the latents' side."""
    expand: Any
    """The same of every head's `[v_head_dim, kv_lora_rank]`: from what it attended to, a latent, to its value."""
    output: Projection


@dataclass(frozen=True, slots=True)
class MlpWeights:
    gate_up: Projection
    down: Projection


@dataclass(frozen=True, slots=True)
class StackedProjection:
    """One projection of every expert of a layer."""

    weight: Any
    """What `native_kernels.pack_stack` returned."""
    bias: Floats | None
    """`[num_experts, rows]`."""


@dataclass(frozen=True, slots=True)
class ExpertsWeights:
    router: Projection
    """Its bias joins the logits."""
    score_bias: Floats | None
    """`[num_experts]`."""
    gate_up: StackedProjection
    down: StackedProjection
    shared: MlpWeights | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Norms `[hidden]`, the offset of the spec added; None where a spec asks for none."""

    input_norm: Floats
    attention: AttentionWeights | LatentAttentionWeights
    mlp_norm: Floats
    mlp: MlpWeights | ExpertsWeights
    attention_output_norm: Floats | None = None
    mlp_output_norm: Floats | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: Any
    """What `native_kernels.pack` returned, as `head`, which may be the same."""
    head: Any
    norm: Floats
    layers: Sequence[LayerWeights]


class DecoderStep(Protocol):
    def __call__(self, arrays: StepArrays, kv_cache: npt.NDArray[Any]) -> Floats:
        """A step as `CausalLM.forward` describes it: `[len(arrays.logit_rows), vocab]`.

        `kv_cache` as `KVCache.elements` gives it.
        """


class DecoderCompiler(Protocol):
    """Binds a model's weights into one call a step, with the bits of the native operations taken one by one."""

    def obstacle(self, spec: ModelSpec) -> str | None:
        """Why it cannot compile this model, in words; None when it can."""

    def compile(self, spec: ModelSpec, weights: DecoderWeights) -> DecoderStep:
        """Only for a spec without an obstacle."""
