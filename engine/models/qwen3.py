"""Qwen 3, dense (arXiv 2505.09388): Llama with norms of every head of Q and K, and a window in late layers if asked
for."""

from __future__ import annotations

from dataclasses import replace

from engine.formats.fields import Fields
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_spec import attention_from_gguf, layers_in_gguf, mlp_from_gguf, model_from_gguf
from engine.formats.hf_config import attention_from_config, model_from_config, refuse_quantised
from engine.models.architecture import Architecture
from engine.models.qwen2 import layers_of_qwen
from engine.spec import LayerSpec, ModelSpec

NAME = "qwen3"


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    bias = config.boolean_or("attention_bias", False)
    attention = replace(attention_from_config(config, qkv_bias=bias, output_bias=bias), qk_norm=True)
    return model_from_config(config, NAME, layers_of_qwen(config, attention))


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """See `Architecture.spec_from_gguf`."""
    layer = LayerSpec(replace(attention_from_gguf(file, NAME), qk_norm=True), mlp_from_gguf(file, NAME))
    return model_from_gguf(file, NAME, NAME, (layer,) * layers_in_gguf(file, NAME))


QWEN3 = Architecture(
    name=NAME,
    hf_model_types=("qwen3",),
    spec_from_config=spec_from_config,
    gguf_names=("qwen3",),
    spec_from_gguf=spec_from_gguf,
)
