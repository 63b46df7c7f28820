"""Mistral (arXiv 2310.06825): Llama, with a sliding window in all layers where the configuration names one.

Its GGUF files call themselves `llama` and are read as that.
"""

from __future__ import annotations

from dataclasses import replace

from engine.formats.fields import Fields
from engine.formats.hf_config import (
    attention_from_config,
    layers_in_config,
    mlp_from_config,
    model_from_config,
    refuse_quantised,
    window_in_config,
)
from engine.models.architecture import Architecture
from engine.spec import LayerSpec, ModelSpec

NAME = "mistral"


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    attention = replace(attention_from_config(config), window=window_in_config(config))
    layer = LayerSpec(attention, mlp_from_config(config))
    return model_from_config(config, NAME, (layer,) * layers_in_config(config))


MISTRAL = Architecture(name=NAME, hf_model_types=("mistral",), spec_from_config=spec_from_config)
