"""Llama 1 to 3 (arXiv 2302.13971, 2407.21783) and models of its shape, such as SmolLM."""

from __future__ import annotations

from engine.formats.expert_names import moe_gguf_tensor
from engine.formats.fields import Fields
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_spec import attention_from_gguf, layers_in_gguf, mlp_from_gguf, model_from_gguf
from engine.formats.hf_config import (
    attention_from_config,
    layers_in_config,
    mlp_from_config,
    model_from_config,
    refuse_quantised,
)
from engine.formats.stored import Stored, halves_from_pairs
from engine.models.architecture import Architecture
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec

NAME = "llama"


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    bias = config.boolean_or("attention_bias", False)
    attention = attention_from_config(config, qkv_bias=bias, output_bias=bias)
    mlp = mlp_from_config(config, bias=config.boolean_or("mlp_bias", False))
    return model_from_config(config, NAME, (LayerSpec(attention, mlp),) * layers_in_config(config))


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """See `Architecture.spec_from_gguf`."""
    layer = LayerSpec(attention_from_gguf(file, NAME), _mlp_from_gguf(file))
    return model_from_gguf(file, NAME, NAME, (layer,) * layers_in_gguf(file, NAME))


def gguf_tensor(spec: ModelSpec, name: str) -> Stored:
    """llama.cpp rotates neighbouring pairs for this architecture, and its converter reorders Q and K for that."""
    stored, attention = moe_gguf_tensor(spec, name), spec.layers[0].attention
    if isinstance(attention, AttentionSpec) and ".q_proj." in name:
        return halves_from_pairs(stored.name, attention.num_heads, attention.head_dim)
    if isinstance(attention, AttentionSpec) and ".k_proj." in name:
        return halves_from_pairs(stored.name, attention.num_kv_heads, attention.head_dim)
    return stored


def _mlp_from_gguf(file: GgufFile) -> MlpSpec | MoeSpec:
    """Mixtral's files have this architecture's name."""
    experts = file.fields.integer_or(f"{NAME}.expert_count", 0)
    if not experts:
        return mlp_from_gguf(file, NAME)
    top_k = file.fields.integer(f"{NAME}.expert_used_count")
    routing = RoutingSpec(experts, top_k, scores="softmax", normalise=True)
    return MoeSpec(routing, MlpSpec(file.fields.integer(f"{NAME}.feed_forward_length")))


LLAMA = Architecture(
    name=NAME,
    hf_model_types=("llama", "smollm"),
    spec_from_config=spec_from_config,
    gguf_names=("llama",),
    spec_from_gguf=spec_from_gguf,
    gguf_tensor=gguf_tensor,
)
