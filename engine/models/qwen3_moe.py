"""Qwen 3 with mixtures of experts (arXiv 2505.09388): Qwen 3's attention, experts in all or some layers."""

from __future__ import annotations

from dataclasses import replace

from engine.formats.expert_names import moe_gguf_tensor
from engine.formats.fields import Fields
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_spec import attention_from_gguf, layers_in_gguf, model_from_gguf
from engine.formats.hf_config import (
    attention_from_config,
    layers_in_config,
    mlp_from_config,
    model_from_config,
    refuse_quantised,
    window_in_config,
)
from engine.models.architecture import Architecture
from engine.spec import LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec

NAME = "qwen3_moe"
GGUF_NAME = "qwen3moe"


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    bias = config.boolean_or("attention_bias", False)
    attention = attention_from_config(config, qkv_bias=bias, output_bias=bias)
    window = window_in_config(config) if config.boolean_or("use_sliding_window", False) else None
    attention = replace(attention, qk_norm=True, window=window)
    dense = mlp_from_config(config)
    routing = RoutingSpec(
        num_experts=config.integer("num_experts" if "num_experts" in config.values else "num_local_experts"),
        top_k=config.integer("num_experts_per_tok"),
        scores="softmax",
        normalise=config.boolean_or("norm_topk_prob", False),
    )
    experts = MoeSpec(routing, replace(dense, intermediate_size=config.integer("moe_intermediate_size")))
    step = config.integer_or("decoder_sparse_step", 1)
    if step < 1:
        raise config.wrong("decoder_sparse_step", "at least 1")
    dense_layers = config.array("mlp_only_layers") if config.values.get("mlp_only_layers") is not None else []
    mlps = (
        dense if layer in dense_layers or (layer + 1) % step else experts for layer in range(layers_in_config(config))
    )
    return model_from_config(config, NAME, tuple(LayerSpec(attention, mlp) for mlp in mlps))


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """See `Architecture.spec_from_gguf`; these files have experts in every layer and always normalised weights."""
    fields = file.fields
    routing = RoutingSpec(
        num_experts=fields.integer(f"{GGUF_NAME}.expert_count"),
        top_k=fields.integer(f"{GGUF_NAME}.expert_used_count"),
        scores="softmax",
        normalise=True,
    )
    experts = MoeSpec(routing, MlpSpec(fields.integer(f"{GGUF_NAME}.expert_feed_forward_length")))
    layer = LayerSpec(replace(attention_from_gguf(file, GGUF_NAME), qk_norm=True), experts)
    return model_from_gguf(file, GGUF_NAME, NAME, (layer,) * layers_in_gguf(file, GGUF_NAME))


QWEN3_MOE = Architecture(
    name=NAME,
    hf_model_types=("qwen3_moe",),
    spec_from_config=spec_from_config,
    gguf_names=(GGUF_NAME,),
    spec_from_gguf=spec_from_gguf,
    gguf_tensor=moe_gguf_tensor,
)
