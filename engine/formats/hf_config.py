"""Fields of `config.json` that architectures share, to parts of a `ModelSpec`."""

from __future__ import annotations

from collections.abc import Callable

from engine.formats.bad_file import bad_file
from engine.formats.fields import Fields
from engine.formats.fp8_config import fp8_scheme
from engine.formats.hf_rope import rope_from_config
from engine.rope_spec import RopeSpec
from engine.spec import Activation, AttentionSpec, LayerSpec, MlpSpec, ModelSpec

MAX_LAYERS = 1000
"""More is a damaged field: a spec lists its layers."""
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_LAYER_TYPES = ("full_attention", "sliding_attention")
_OTHER_MODEL = "use a model without it"


def attention_from_config(
    config: Fields,
    *,
    rope: Callable[[Fields, int], RopeSpec] = rope_from_config,
    qkv_bias: bool = False,
    output_bias: bool = False,
) -> AttentionSpec:
    """Plain grouped-query attention; what an architecture adds it replaces in the result. `rope` reads the rotation of
    heads of so many dimensions."""
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    head_dim = config.integer_or("head_dim", hidden // max(heads, 1))
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.integer_or("num_key_value_heads", heads),
        head_dim=head_dim,
        rope=rope(config, head_dim),
        scale=max(head_dim, 1) ** -0.5,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
    )


def mlp_from_config(
    config: Fields, *, activation_key: str = "hidden_act", default: str = "silu", bias: bool = False
) -> MlpSpec:
    """The gated MLP; raises SpliceError for an activation nobody computes."""
    name = config.string_or(activation_key, default)
    if name not in _ACTIVATIONS:
        raise bad_file(
            config.path,
            f"field {activation_key!r} is {name!r}, expected one of {', '.join(sorted(_ACTIVATIONS))}",
            _OTHER_MODEL,
        )
    return MlpSpec(config.integer("intermediate_size"), _ACTIVATIONS[name], bias)


def layers_in_config(config: Fields) -> int:
    """How many layers; raises SpliceError for a number no model has."""
    count = config.integer("num_hidden_layers")
    if not 1 <= count <= MAX_LAYERS:
        raise config.wrong("num_hidden_layers", f"1 to {MAX_LAYERS}")
    return count


def window_in_config(config: Fields) -> int | None:
    """`sliding_window`, or None where it is as long as the context and so no window at all."""
    window = config.integer_or("sliding_window", None)
    return None if window is None or window >= config.integer("max_position_embeddings") else window


def windowed_layers(config: Fields, default: Callable[[int], bool]) -> list[bool]:
    """Which layers have a sliding window: as `layer_types` says, or else `default(layer)`."""
    count = layers_in_config(config)
    if config.values.get("layer_types") is None:
        return [default(layer) for layer in range(count)]
    kinds = config.array("layer_types")
    if len(kinds) != count or not all(kind in _LAYER_TYPES for kind in kinds):
        raise config.wrong("layer_types", f"{count} of {' or '.join(_LAYER_TYPES)}")
    return [kind == "sliding_attention" for kind in kinds]


def refuse_quantised(config: Fields) -> None:
    """Raises SpliceError for a model whose safetensors hold neither its weights' values nor FP8 codes and scales."""
    fp8_scheme(config)


def model_from_config(
    config: Fields, architecture: str, layers: tuple[LayerSpec, ...], *, tied_by_default: bool = False
) -> ModelSpec:
    """A model of these layers with nothing special around them."""
    return ModelSpec(
        architecture=architecture,
        hidden_size=config.integer("hidden_size"),
        vocab_size=config.integer("vocab_size"),
        max_positions=config.integer("max_position_embeddings"),
        rms_norm_eps=config.number("rms_norm_eps"),
        layers=layers,
        tie_embeddings=config.boolean_or("tie_word_embeddings", tied_by_default),
    )
