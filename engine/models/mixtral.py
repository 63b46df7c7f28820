"""Mixtral (arXiv 2401.04088): Mistral with a mixture of experts in every layer.

Its GGUF files call themselves `llama` and are read as that.
"""

from __future__ import annotations

from dataclasses import replace

from engine.formats.expert_names import ExpertName
from engine.formats.fields import Fields
from engine.formats.hf_config import (
    attention_from_config,
    layers_in_config,
    mlp_from_config,
    model_from_config,
    refuse_quantised,
    window_in_config,
)
from engine.formats.stored import Stored
from engine.models.architecture import Architecture
from engine.spec import LayerSpec, ModelSpec, MoeSpec, RoutingSpec

NAME = "mixtral"
_PARTS = {"gate": "w1", "down": "w2", "up": "w3"}


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    attention = replace(attention_from_config(config), window=window_in_config(config))
    routing = RoutingSpec(
        num_experts=config.integer("num_local_experts"),
        top_k=config.integer("num_experts_per_tok"),
        scores="softmax",
        normalise=True,
    )
    layer = LayerSpec(attention, MoeSpec(routing, mlp_from_config(config)))
    return model_from_config(config, NAME, (layer,) * layers_in_config(config))


def hf_tensor(spec: ModelSpec, name: str) -> Stored:
    """See `Architecture.hf_tensor`."""
    expert = ExpertName.of(name)
    if expert is None:
        return Stored(name.replace(".mlp.", ".block_sparse_moe."))
    return Stored(f"{expert.prefix}.block_sparse_moe.experts.{expert.index}.{_PARTS[expert.part]}.{expert.kind}")


MIXTRAL = Architecture(name=NAME, hf_model_types=("mixtral",), spec_from_config=spec_from_config, hf_tensor=hf_tensor)
