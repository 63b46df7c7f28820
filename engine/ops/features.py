"""What a model asks of an operation beyond the plain case, which every candidate computes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from engine.ops.names import OP_NAMES, OpName
from engine.spec import AttentionSpec, LatentAttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec

Feature = Literal[
    "window", "softcap", "sinks", "partial_rotary", "gelu_tanh", "swiglu_oai", "latent_attention", "experts"
]

FEATURES: Mapping[OpName, frozenset[Feature]] = MappingProxyType(
    {
        "rope_and_store": frozenset({"partial_rotary"}),
        "paged_attention": frozenset({"window", "softcap", "sinks"}),
        "gated_mul": frozenset({"gelu_tanh", "swiglu_oai"}),
        "experts": frozenset({"gelu_tanh", "swiglu_oai"}),
    }
)
"""Which operation's business a feature is. `partial_rotary`: fewer dimensions of a head turn than it has, or none."""
_USED_WITH: Mapping[OpName, Feature] = MappingProxyType(
    {
        "store_latents": "latent_attention",
        "latent_attention": "latent_attention",
        "route": "experts",
        "experts": "experts",
    }
)


def used_ops(features: frozenset[Feature]) -> tuple[OpName, ...]:
    """The operations that a model with these features is made of."""
    return tuple(op for op in OP_NAMES if op not in _USED_WITH or _USED_WITH[op] in features)


def features_of(spec: ModelSpec) -> frozenset[Feature]:
    """Everything that any layer of the model needs: one candidate computes an operation in all of them."""
    return frozenset(feature for layer in dict.fromkeys(spec.layers) for feature in _layer_features(layer))


def _layer_features(layer: LayerSpec) -> list[Feature]:
    found: list[Feature] = []
    if isinstance(layer.attention, AttentionSpec):
        found += _attention_features(layer.attention)
    if isinstance(layer.attention, LatentAttentionSpec):
        found.append("latent_attention")
    if isinstance(layer.mlp, MoeSpec):
        found.append("experts")
    mlps = [layer.mlp] if isinstance(layer.mlp, MlpSpec) else [layer.mlp.expert, layer.mlp.shared]
    for mlp in mlps:
        if mlp is not None and mlp.activation != "silu":
            found.append(mlp.activation)
    return found


def _attention_features(attention: AttentionSpec) -> list[Feature]:
    found: list[Feature] = []
    if attention.window is not None:
        found.append("window")
    if attention.softcap is not None:
        found.append("softcap")
    if attention.sinks:
        found.append("sinks")
    if attention.rope is None or attention.rope.dim(attention.head_dim) != attention.head_dim:
        found.append("partial_rotary")
    return found
