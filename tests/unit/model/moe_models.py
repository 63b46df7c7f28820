"""Tiny random mixtures of experts and models with latent attention, made and saved by `transformers`' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import CONFIG, byte_tokenizer
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

_COMMON: dict[str, Any] = {**CONFIG, "num_experts_per_tok": 2, "rms_norm_eps": 1e-4}
_LATENT: dict[str, Any] = {
    **{key: value for key, value in _COMMON.items() if key not in ("head_dim", "num_key_value_heads")},
    "num_key_value_heads": 4, "kv_lora_rank": 20, "q_lora_rank": 24, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6,
    "v_head_dim": 14, "moe_intermediate_size": 40, "n_routed_experts": 8, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "num_hidden_layers": 3, "num_experts_per_tok": 3,
}  # fmt: skip
_YARN: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
_QWEN: dict[str, Any] = {"num_experts": 6, "moe_intermediate_size": 40}
_GPT_OSS: dict[str, Any] = {
    "num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 17, "num_hidden_layers": 3,
    "intermediate_size": 64, "rope_parameters": {**_YARN, "rope_theta": 150000.0, "truncate": False},
}  # fmt: skip
_V2 = {"topk_method": "greedy", "n_group": None, "topk_group": None, "routed_scaling_factor": 1.7}
_V3 = {"n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 0}

MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, {**_COMMON, "num_local_experts": 5}),
    "mixtral-window": (MixtralForCausalLM, MixtralConfig, {**_COMMON, "num_local_experts": 3, "sliding_window": 20}),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {**_COMMON, **_QWEN, "norm_topk_prob": True}),
    "qwen3-moe-dense-layers": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {**_COMMON, **_QWEN, "num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [1],
         "attention_bias": True},
    ),
    "gpt-oss": (GptOssForCausalLM, GptOssConfig, {**_COMMON, **_GPT_OSS}),
    "gpt-oss-plain": (
        GptOssForCausalLM,
        GptOssConfig,
        {**_COMMON, **_GPT_OSS, "attention_bias": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
         "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
    "deepseek-v2": (DeepseekV2ForCausalLM, DeepseekV2Config, {**_LATENT, **_V2}),
    "deepseek-v2-lite": (
        DeepseekV2ForCausalLM,
        DeepseekV2Config,
        {**_LATENT, **_V2, "q_lora_rank": None, "mlp_bias": True, "rope_parameters": {**_YARN, "mscale": 0.9,
         "mscale_all_dim": 0.7}},
    ),
    "deepseek-v2-groups": (
        DeepseekV2ForCausalLM,
        DeepseekV2Config,
        {**_LATENT, **_V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
         "first_k_dense_replace": 0, "attention_bias": True},
    ),
    "deepseek-v3": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config,
        {**_LATENT, **_V3, "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek-v3-one-group": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config,
        {**_LATENT, **_V3, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "attention_bias": True,
         "rope_interleave": False, "q_lora_rank": None, "n_shared_experts": 1},
    ),
}  # fmt: skip
"""Between them every branch of routing, of attention and of the choice of layers."""


def save_moe(directory: Path, kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model of that kind in `directory`, complete with a tokenizer; returns the reference."""
    model_class, config_class, config = MODELS[kind]
    torch.manual_seed(seed)
    reference = model_class(config_class(**{**config, **changes})).float().eval()
    with torch.no_grad():
        for name, values in (*reference.named_parameters(), *reference.named_buffers()):
            if "norm" in name:
                values.copy_(1 + 0.2 * torch.randn(values.shape))
            elif name.endswith(("bias", "sinks")):
                values.copy_(0.5 * torch.randn(values.shape))
    reference.save_pretrained(directory)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    return reference
