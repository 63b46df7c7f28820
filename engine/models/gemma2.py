"""Gemma 2 (arXiv 2408.00118): norms around attention and MLP, soft caps, a window in every other layer, scaled
embeddings, norm weights stored less one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.formats.bad_file import bad_file
from engine.formats.fields import Fields
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_spec import (
    attention_from_gguf,
    layers_in_gguf,
    mlp_from_gguf,
    model_from_gguf,
    window_in_gguf,
)
from engine.formats.hf_config import (
    attention_from_config,
    mlp_from_config,
    model_from_config,
    refuse_quantised,
    window_in_config,
    windowed_layers,
)
from engine.formats.hf_rope import rope_from_config
from engine.formats.stored import Stored
from engine.models.architecture import Architecture
from engine.rope_spec import RopeSpec
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec

NAME = "gemma2"
LAYERS_OF_27B = 46
_HF_NORMS = {
    "attention_output_norm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    refuse_bidirectional(config)
    full = replace(
        gemma_attention(config),
        softcap=config.number_or("attn_logit_softcapping", None),
    )
    windowed = replace(full, window=window_in_config(config))
    mlp = gemma_mlp(config)
    layers = tuple(
        LayerSpec(windowed if is_windowed else full, mlp, post_norms=True)
        for is_windowed in windowed_layers(config, lambda layer: layer % 2 == 0)
    )
    return gemma_model(model_from_config(config, NAME, layers, tied_by_default=True), config)


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """See `Architecture.spec_from_gguf`. These files have the one added to norm weights, and the older of them leave
    out what is the same in all Gemma 2 models."""
    fields, count = file.fields, layers_in_gguf(file, NAME)
    full = replace(
        gemma_attention_in_gguf(file, NAME, is_27b=count == LAYERS_OF_27B),
        softcap=fields.number_or(f"{NAME}.attn_logit_softcapping", 50.0),
    )
    windowed = replace(full, window=window_in_gguf(file, NAME, 4096))
    mlp = mlp_from_gguf(file, NAME, "gelu_tanh")
    layers = tuple(LayerSpec(full if layer % 2 else windowed, mlp, post_norms=True) for layer in range(count))
    spec = model_from_gguf(file, NAME, NAME, layers)
    cap = fields.number_or(f"{NAME}.final_logit_softcapping", 30.0)
    return replace(spec, embedding_scale=max(spec.hidden_size, 1) ** 0.5, logit_softcap=cap)


def gemma_attention(config: Fields, rope: Callable[[Fields, int], RopeSpec] = rope_from_config) -> AttentionSpec:
    """What all Gemmas with `query_pre_attn_scalar` share."""
    bias = config.boolean_or("attention_bias", False)
    attention = attention_from_config(config, rope=rope, qkv_bias=bias, output_bias=bias)
    return replace(attention, scale=max(config.number("query_pre_attn_scalar"), 1e-9) ** -0.5)


def gemma_mlp(config: Fields) -> MlpSpec:
    """Under the field that replaced `hidden_act`, which some files have as well."""
    return mlp_from_config(config, activation_key="hidden_activation", default="gelu_pytorch_tanh")


def gemma_attention_in_gguf(file: GgufFile, name: str, *, is_27b: bool) -> AttentionSpec:
    """These files do not say `query_pre_attn_scalar`: it is hidden size / heads in the 27 B models, else head_dim."""
    attention = attention_from_gguf(file, name)
    if not is_27b:
        return attention
    width = file.fields.integer(f"{name}.embedding_length") / max(attention.num_heads, 1)
    return replace(attention, scale=max(width, 1) ** -0.5)


def gemma_model(spec: ModelSpec, config: Fields) -> ModelSpec:
    """What all Gemmas have around their layers."""
    return replace(
        spec,
        norm_offset=1.0,
        embedding_scale=max(spec.hidden_size, 1) ** 0.5,
        logit_softcap=config.number_or("final_logit_softcapping", None),
    )


def refuse_bidirectional(config: Fields) -> None:
    """Raises SpliceError for an encoder in a Gemma's clothes."""
    if config.boolean_or("use_bidirectional_attention", False):
        raise bad_file(config.path, "field 'use_bidirectional_attention' is true: not a causal model", "use another")


def hf_tensor(spec: ModelSpec, name: str) -> Stored:
    """Four norms a layer, where Llama has two with names of other meaning."""
    head, _, module = name.removesuffix(".weight").rpartition(".")
    return Stored(f"{head}.{_HF_NORMS[module]}.weight" if module in _HF_NORMS else name)


GEMMA2 = Architecture(
    name=NAME,
    hf_model_types=("gemma2",),
    spec_from_config=spec_from_config,
    hf_tensor=hf_tensor,
    gguf_names=("gemma2",),
    spec_from_gguf=spec_from_gguf,
)
