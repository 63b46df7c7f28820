"""Qwen 2 and 2.5 (arXiv 2407.10671): Llama with biases on Q, K and V, and a window in late layers if asked for."""

from __future__ import annotations

from dataclasses import replace

from engine.formats.fields import Fields
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_spec import attention_from_gguf, layers_in_gguf, mlp_from_gguf, model_from_gguf
from engine.formats.hf_config import (
    attention_from_config,
    layers_in_config,
    mlp_from_config,
    model_from_config,
    refuse_quantised,
    window_in_config,
    windowed_layers,
)
from engine.models.architecture import Architecture
from engine.spec import AttentionSpec, LayerSpec, ModelSpec

NAME = "qwen2"


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    full = attention_from_config(config, qkv_bias=True)
    layers = layers_of_qwen(config, full)
    return model_from_config(config, NAME, layers)


def layers_of_qwen(config: Fields, full: AttentionSpec) -> tuple[LayerSpec, ...]:
    """A window is named in many files and used, in late layers, only where `use_sliding_window` says so."""
    mlp = mlp_from_config(config)
    if not config.boolean_or("use_sliding_window", False):
        return (LayerSpec(full, mlp),) * layers_in_config(config)
    windowed = replace(full, window=window_in_config(config))
    first = config.integer("max_window_layers")
    chosen = windowed_layers(config, lambda layer: layer >= first)
    return tuple(LayerSpec(windowed if is_windowed else full, mlp) for is_windowed in chosen)


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """See `Architecture.spec_from_gguf`."""
    layer = LayerSpec(attention_from_gguf(file, NAME), mlp_from_gguf(file, NAME))
    return model_from_gguf(file, NAME, NAME, (layer,) * layers_in_gguf(file, NAME))


QWEN2 = Architecture(
    name=NAME,
    hf_model_types=("qwen2",),
    spec_from_config=spec_from_config,
    gguf_names=("qwen2",),
    spec_from_gguf=spec_from_gguf,
)
