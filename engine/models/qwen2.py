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
    rope_from_config,
    window_in_config,
)
from engine.models.architecture import Architecture
from engine.spec import LayerSpec, ModelSpec

NAME = "qwen2"


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    full = attention_from_config(config, rope_from_config(config), qkv_bias=True)
    mlp = mlp_from_config(config)
    layers = layers_in_config(config)
    # A window is named in many files and used only where `use_sliding_window` says so.
    window = window_in_config(config) if config.boolean_or("use_sliding_window", False) else None
    first_windowed = config.integer_or("max_window_layers", 28)
    attentions = (replace(full, window=window if layer >= first_windowed else None) for layer in range(layers))
    return model_from_config(config, NAME, tuple(LayerSpec(attention, mlp) for attention in attentions))


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
