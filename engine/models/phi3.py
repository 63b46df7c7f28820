"""Phi-3 and Phi-4-mini (arXiv 2404.14219): Llama with Q, K and V in one tensor and gate and up in another, part of a
head turning in some, and scaling by two sets of factors in those with a long context."""

from __future__ import annotations

from dataclasses import replace

from engine.formats.fields import Fields
from engine.formats.gguf_file import GgufFile
from engine.formats.gguf_names import gguf_name
from engine.formats.gguf_spec import (
    attention_from_gguf,
    layers_in_gguf,
    mlp_from_gguf,
    model_from_gguf,
    window_in_gguf,
)
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


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """See `Architecture.spec_from_gguf`."""
    attention = replace(attention_from_gguf(file, NAME), window=window_in_gguf(file, NAME))
    layer = LayerSpec(attention, mlp_from_gguf(file, NAME))
    return model_from_gguf(file, NAME, NAME, (layer,) * layers_in_gguf(file, NAME))


def hf_tensor(spec: ModelSpec, name: str) -> Stored:
    """Parts of the two fused projections."""
    return _part(spec, name, "qkv_proj", "gate_up_proj") or Stored(name)


def gguf_tensor(spec: ModelSpec, name: str) -> Stored:
    """The same two, one under the name of a narrower tensor of other models."""
    stored = _part(spec, name, "attn_qkv", "ffn_up")
    if stored is None:
        return Stored(gguf_name(name))
    layer, module = name.split(".")[2], stored.name.split(".")[-2]
    return replace(stored, name=f"blk.{layer}.{module}.weight")


def _part(spec: ModelSpec, name: str, qkv: str, gate_up: str) -> Stored | None:
    """Rows of `qkv` or `gate_up`, in place of the last word of the name; None for a tensor that stands alone."""
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    if not isinstance(attention, AttentionSpec) or not isinstance(mlp, MlpSpec):
        raise TypeError(f"{spec.architecture} is no {NAME}")
    q, kv, wide = attention.num_heads, attention.num_kv_heads, mlp.intermediate_size
    heads = {"q_proj": (0, q), "k_proj": (q, kv), "v_proj": (q + kv, kv)}
    head, _, module = name.removesuffix(".weight").rpartition(".")
    if module in heads:
        first, count = (number * attention.head_dim for number in heads[module])
        return row_range(f"{head}.{qkv}.weight", first, count, of=(q + 2 * kv) * attention.head_dim)
    if module in ("gate_proj", "up_proj"):
        return row_range(f"{head}.{gate_up}.weight", wide * (module == "up_proj"), wide, of=2 * wide)
    return None


PHI3 = Architecture(
    name=NAME,
    hf_model_types=("phi3",),
    spec_from_config=spec_from_config,
    hf_tensor=hf_tensor,
    gguf_names=("phi3",),
    spec_from_gguf=spec_from_gguf,
    gguf_tensor=gguf_tensor,
)
