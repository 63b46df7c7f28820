"""A step of a plain decoder as one native call: see `csrc/cpu/decoder.h`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine._native import Decoder, Kernels
from engine.ops.decoder import DecoderStep, DecoderWeights, Floats
from engine.ops.features import features_of
from engine.ops.names import Activations
from engine.spec import AttentionSpec, MlpSpec, ModelSpec
from engine.step_arrays import StepArrays


class NativeDecoderCompiler:
    """See `DecoderCompiler`."""

    def __init__(self, kernels: Kernels, activations: Activations) -> None:
        self._kernels = kernels
        self._activations = activations

    def obstacle(self, spec: ModelSpec) -> str | None:
        """See `DecoderCompiler.obstacle`: layers are equal and plain, with nothing around them."""
        first = spec.layers[0]
        if any(layer != first for layer in spec.layers):
            return "its layers differ"
        if not isinstance(first.attention, AttentionSpec) or not isinstance(first.mlp, MlpSpec):
            return "it has other layers than grouped-query attention and a gated MLP"
        features: list[str] = sorted(features_of(spec))
        if first.attention.qk_norm:
            features.append("qk_norm")
        if first.post_norms:
            features.append("post_norms")
        if spec.embedding_scale != 1.0:
            features.append("embedding_scale")
        if spec.logit_softcap is not None:
            features.append("logit_softcap")
        return f"it has {', '.join(features)}" if features else None

    def compile(self, spec: ModelSpec, weights: DecoderWeights) -> DecoderStep:
        """See `DecoderCompiler.compile`."""
        attention = spec.layers[0].attention
        if not isinstance(attention, AttentionSpec):
            raise TypeError(f"{spec.architecture} cannot be compiled: {self.obstacle(spec)}")
        return NativeDecoder(self._kernels, spec, attention, weights, int8=self._activations == "int8")


class NativeDecoder:
    """See `DecoderStep`. Between operations no Python runs; the GIL is free for the length of the step."""

    def __init__(
        self, kernels: Kernels, spec: ModelSpec, attention: AttentionSpec, weights: DecoderWeights, *, int8: bool
    ) -> None:
        self._vocab_size = spec.vocab_size
        self._decoder = Decoder(
            kernels,
            weights.embedding,
            weights.head,
            weights.norm,
            weights.layers[0].cos_sin,
            eps=spec.rms_norm_eps,
            scale=attention.scale,
            num_heads=attention.num_heads,
            num_kv_heads=attention.num_kv_heads,
            head_dim=attention.head_dim,
            int8=int8,
        )
        for layer in weights.layers:
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
