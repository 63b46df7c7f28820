"""A step of a Llama-family model as one native call: see `csrc/cpu/decoder.h`."""

from __future__ import annotations

import torch

from engine._native import Decoder, Kernels
from engine.layers.step_plan import StepPlan
from engine.ops.decoder import DecoderWeights
from engine.spec import ModelSpec


class NativeDecoder:
    """See `DecoderStep`. Between operations no Python runs; the GIL is free for the length of the step."""

    def __init__(self, kernels: Kernels, spec: ModelSpec, weights: DecoderWeights) -> None:
        self._vocab_size = spec.vocab_size
        self._decoder = Decoder(
            kernels,
            weights.embedding,
            weights.head,
            weights.norm,
            weights.cos_sin,
            eps=spec.rms_norm_eps,
            scale=spec.head_dim**-0.5,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
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

    def __call__(self, plan: StepPlan, kv_cache: torch.Tensor) -> torch.Tensor:
        """See `DecoderStep`."""
        logits = torch.empty(len(plan.logit_rows), self._vocab_size)
        self._decoder.step(
            logits,
            plan.token_ids,
            plan.positions,
            plan.slots,
            plan.block_tables,
            plan.query_starts,
            plan.starts,
            plan.logit_rows,
            kv_cache,
        )
        return logits
