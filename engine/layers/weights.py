"""Where layers get their weights: by canonical name, checked against the shape the layer needs."""

from __future__ import annotations

from typing import Protocol

import torch

from engine.ops.weight_matrix import WeightMatrix


class Weights(Protocol):
    """Tensors of one model under canonical names: those Llama has in Hugging Face's files, for example
    `model.layers.0.mlp.up_proj.weight`, and for what Llama does not have, in `model.layers.N.`:

    `attention_output_norm`, `mlp_output_norm`, `self_attn.q_norm`, `self_attn.k_norm` (each `.weight`) and
    `self_attn.sinks`. `post_attention_layernorm` is always the norm before the MLP. Mixtures of experts have Qwen 3's
    names, `mlp.gate` and `mlp.experts.N.gate_proj`, and DeepSeek's `mlp.gate.e_score_correction_bias` and
    `mlp.shared_experts`; latent attention has DeepSeek's, but `self_attn.k_b_proj.N` and `self_attn.v_b_proj.N` (each
    `.weight`) for head N's rows of `kv_b_proj`. What a file calls them and how it stacks their rows is its
    architecture's business: see `engine.formats.stored`.
    """

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor in `dtype`, by default the model's, contiguous, owned by the caller.

        Raises SpliceError (bad_model_file), naming file, tensor and remedy, when it is missing, has another shape or
        an unreadable type.
        """

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> WeightMatrix:
        """As `take`, but left quantised when the file has it in one of `kinds` and the model's dtype, float32, holds
        its values exactly."""
