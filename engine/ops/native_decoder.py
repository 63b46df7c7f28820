"""A step of a decoder as one native call: see `csrc/cpu/decoder.h`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine._native import Decoder, Kernels
from engine.ops.decoder import DecoderStep, DecoderWeights, Floats, LayerWeights
from engine.ops.names import Activations
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from engine.step_arrays import StepArrays

_ACTIVATIONS = frozenset({"silu", "gelu_tanh"})


class NativeDecoderCompiler:
    """See `DecoderCompiler`."""

    def __init__(self, kernels: Kernels, activations: Activations) -> None:
        self._kernels = kernels
        self._activations = activations

    def obstacle(self, spec: ModelSpec) -> str | None:
        """See `DecoderCompiler.obstacle`: layers of grouped-query attention and gated MLPs only."""
        for layer in dict.fromkeys(spec.layers):
            if not isinstance(layer.attention, AttentionSpec) or not isinstance(layer.mlp, MlpSpec):
                return "it has other layers than grouped-query attention and a gated MLP"
            if layer.mlp.activation not in _ACTIVATIONS:
                return f"its MLPs have {layer.mlp.activation}"
        return None

    def compile(self, spec: ModelSpec, weights: DecoderWeights) -> DecoderStep:
        """See `DecoderCompiler.compile`."""
        obstacle = self.obstacle(spec)
        if obstacle is not None:
            raise TypeError(f"{spec.architecture} cannot be compiled: {obstacle}")
        return NativeDecoder(self._kernels, spec, weights, int8=self._activations == "int8")


class NativeDecoder:
    """See `DecoderStep`. Between operations no Python runs; the GIL is free for the length of the step."""

    def __init__(self, kernels: Kernels, spec: ModelSpec, weights: DecoderWeights, *, int8: bool) -> None:
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
            int8=int8,
        )
        for layer, own in zip(spec.layers, weights.layers, strict=True):
            self._add(layer, own)

    def _add(self, spec: LayerSpec, layer: LayerWeights) -> None:
        attention, mlp = spec.attention, spec.mlp
        if not isinstance(attention, AttentionSpec) or not isinstance(mlp, MlpSpec):
            raise TypeError("a layer of another kind than an obstacle-free spec has")
        self._decoder.add_layer(
            input_norm=layer.input_norm,
            qkv=layer.qkv.weight,
            qkv_bias=layer.qkv.bias,
            output=layer.output.weight,
            output_bias=layer.output.bias,
            mlp_norm=layer.mlp_norm,
            gate_up=layer.gate_up.weight,
            gate_up_bias=layer.gate_up.bias,
            down=layer.down.weight,
            down_bias=layer.down.bias,
            cos_sin=layer.cos_sin,
            num_heads=attention.num_heads,
            scale=attention.scale,
            activation=mlp.activation,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            sinks=layer.sinks,
            attention_output_norm=layer.attention_output_norm,
            mlp_output_norm=layer.mlp_output_norm,
            window=attention.window or 0,
            softcap=attention.softcap or 0.0,
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
