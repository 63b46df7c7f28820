"""A step of a decoder as one native call: see `csrc/cpu/decoder.h`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine._native import Decoder, Experts, Kernels, Latent, Routing
from engine.ops.decoder import (
    AttentionWeights,
    DecoderStep,
    DecoderWeights,
    ExpertsWeights,
    Floats,
    LatentAttentionWeights,
    LayerWeights,
    MlpWeights,
)
from engine.ops.names import Activations
from engine.spec import AttentionSpec, LatentAttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec
from engine.steps.step_arrays import StepArrays

_MAX_ROW = 1024
"""SPLICE_CPU_MAX_HEAD_DIM."""


class NativeDecoderCompiler:
    """See `DecoderCompiler`."""

    def __init__(self, kernels: Kernels, activations: Activations) -> None:
        self._kernels = kernels
        self._activations = activations

    def obstacle(self, spec: ModelSpec) -> str | None:
        """See `DecoderCompiler.obstacle`."""
        _, _, row = spec.kv_shape
        return f"a head has {row} values in the cache, and kernels have room for {_MAX_ROW}" if row > _MAX_ROW else None

    def compile(self, spec: ModelSpec, weights: DecoderWeights) -> DecoderStep:
        """See `DecoderCompiler.compile`."""
        obstacle = self.obstacle(spec)
        if obstacle is not None:
            raise TypeError(f"{spec.architecture} cannot be compiled: {obstacle}")
        return NativeDecoder(self._kernels, spec, weights, self._activations)


class NativeDecoder:
    """See `DecoderStep`. Between operations no Python runs; the GIL is free for the length of the step."""

    def __init__(self, kernels: Kernels, spec: ModelSpec, weights: DecoderWeights, activations: Activations) -> None:
        self._vocab_size = spec.vocab_size
        _, num_kv_heads, head_dim = spec.kv_shape
        self._decoder = Decoder(
            kernels,
            weights.embedding,
            weights.head,
            weights.norm,
            eps=spec.rms_norm_eps,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            embedding_scale=spec.embedding_scale,
            logit_softcap=spec.logit_softcap or 0.0,
            int8=activations == "int8",
            bf16=activations == "bfloat16",
        )
        for layer, own in zip(spec.layers, weights.layers, strict=True):
            self._add(layer, own)

    def _add(self, spec: LayerSpec, layer: LayerWeights) -> None:
        self._decoder.add_layer(
            input_norm=layer.input_norm,
            **_attention(spec.attention, layer.attention),
            mlp_norm=layer.mlp_norm,
            **_mlp(spec.mlp, layer.mlp),
            attention_output_norm=layer.attention_output_norm,
            mlp_output_norm=layer.mlp_output_norm,
        )

    def __call__(self, arrays: StepArrays, kv_cache: npt.NDArray[Any]) -> Floats:
        """See `DecoderStep`."""
        logits = np.empty((len(arrays.logit_rows), self._vocab_size), dtype=np.float32)
        self._decoder.step(
            logits,
            arrays.token_ids,
            arrays.positions,
            arrays.slots,
            arrays.block_tables,
            arrays.query_starts,
            arrays.starts,
            arrays.logit_rows,
            kv_cache,
        )
        return logits


def routing_of(spec: RoutingSpec, logit_bias: Floats | None, score_bias: Floats | None) -> Routing:
    """The routing of a spec, with its biases `[num_experts]`."""
    return Routing(
        spec.num_experts,
        spec.top_k,
        spec.scores,
        normalise=spec.normalise,
        scale=spec.scale,
        num_groups=spec.num_groups,
        top_groups=spec.top_groups,
        group_score=spec.group_score,
        logit_bias=logit_bias,
        score_bias=score_bias,
    )


def _attention(
    spec: AttentionSpec | LatentAttentionSpec, weights: AttentionWeights | LatentAttentionWeights
) -> dict[str, Any]:
    """What `add_layer` is told of it."""
    shared = {
        "output": weights.output.weight,
        "output_bias": weights.output.bias,
        "cos_sin": weights.cos_sin,
        "num_heads": spec.num_heads,
        "scale": spec.scale,
    }
    if isinstance(spec, AttentionSpec) and isinstance(weights, AttentionWeights):
        return {
            **shared,
            "qkv": weights.qkv.weight,
            "qkv_bias": weights.qkv.bias,
            "q_norm": weights.q_norm,
            "k_norm": weights.k_norm,
            "sinks": weights.sinks,
            "window": spec.window or 0,
            "softcap": spec.softcap or 0.0,
        }
    if isinstance(spec, LatentAttentionSpec) and isinstance(weights, LatentAttentionWeights):
        return {**shared, "latent": _latent(spec, weights)}
    raise TypeError("weights of another attention than the spec's")


def _latent(spec: LatentAttentionSpec, weights: LatentAttentionWeights) -> Latent:
    q_down = weights.q_down
    return Latent(
        q_down=None if q_down is None else q_down.weight,
        q_down_bias=None if q_down is None else q_down.bias,
        q_norm=weights.q_norm,
        q=weights.q.weight,
        kv_down=weights.kv_down.weight,
        kv_down_bias=weights.kv_down.bias,
        kv_norm=weights.kv_norm,
        absorb=weights.absorb,
        expand=weights.expand,
        num_heads=spec.num_heads,
        still=spec.qk_nope_head_dim,
        turning=spec.qk_rope_head_dim,
        rank=spec.kv_lora_rank,
        value=spec.v_head_dim,
        eps=spec.norm_eps,
    )


def _mlp(spec: MlpSpec | MoeSpec, weights: MlpWeights | ExpertsWeights) -> dict[str, Any]:
    """What `add_layer` is told of it."""
    if isinstance(spec, MlpSpec) and isinstance(weights, MlpWeights):
        return {**_projections(weights, ""), "activation": spec.activation}
    if isinstance(spec, MoeSpec) and isinstance(weights, ExpertsWeights):
        return {"experts": _experts(spec, weights)}
    raise TypeError("weights of another MLP than the spec's")


def _experts(spec: MoeSpec, weights: ExpertsWeights) -> Experts:
    shared = {}
    if spec.shared is not None and weights.shared is not None:
        shared = {**_projections(weights.shared, "shared_"), "shared_activation": spec.shared.activation}
    return Experts(
        routing_of(spec.routing, weights.router.bias, weights.score_bias),
        weights.router.weight,
        gate_up=weights.gate_up.weight,
        gate_up_bias=weights.gate_up.bias,
        down=weights.down.weight,
        down_bias=weights.down.bias,
        activation=spec.expert.activation,
        **shared,
    )


def _projections(weights: MlpWeights, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}gate_up": weights.gate_up.weight,
        f"{prefix}gate_up_bias": weights.gate_up.bias,
        f"{prefix}down": weights.down.weight,
        f"{prefix}down_bias": weights.down.bias,
    }
