"""Phi-3 and Phi-4-mini (arXiv 2404.14219): Llama with Q, K and V in one tensor and gate and up in another, part of a
head turning in some, and scaling by two sets of factors in those with a long context."""

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
from engine.formats.stored import Stored, row_range
from engine.models.architecture import Architecture
from engine.rope_spec import LongRopeScaling
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec

NAME = "phi3"


def spec_from_config(config: Fields) -> ModelSpec:
    """See `Architecture.spec_from_config`."""
    refuse_quantised(config)
    attention = replace(attention_from_config(config), window=window_in_config(config))
    if attention.rope is not None and not isinstance(attention.rope.scaling, LongRopeScaling | None):
        # Early files call this scaling by other kinds' names: computing what they say would be something else.
        raise config.wrong("rope_scaling", "no scaling or longrope")
    layer = LayerSpec(attention, mlp_from_config(config))
    return model_from_config(config, NAME, (layer,) * layers_in_config(config))


def hf_tensor(spec: ModelSpec, name: str) -> Stored:
    """Parts of the two fused projections."""
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    if not isinstance(attention, AttentionSpec) or not isinstance(mlp, MlpSpec):
        raise TypeError(f"{spec.architecture} is no {NAME}")
    q, kv, wide = attention.num_heads, attention.num_kv_heads, mlp.intermediate_size
    heads = {"q_proj": (0, q), "k_proj": (q, kv), "v_proj": (q + kv, kv)}
    head, _, module = name.removesuffix(".weight").rpartition(".")
    if module in heads:
        first, count = (number * attention.head_dim for number in heads[module])
        return row_range(f"{head}.qkv_proj.weight", first, count, of=(q + 2 * kv) * attention.head_dim)
    if module in ("gate_proj", "up_proj"):
        return row_range(f"{head}.gate_up_proj.weight", wide * (module == "up_proj"), wide, of=2 * wide)
    return Stored(name)


PHI3 = Architecture(name=NAME, hf_model_types=("phi3",), spec_from_config=spec_from_config, hf_tensor=hf_tensor)
