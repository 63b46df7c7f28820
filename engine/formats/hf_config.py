"""`config.json` of a Hugging Face directory to a `ModelSpec`."""

from __future__ import annotations

from engine.formats.bad_file import bad_file
from engine.formats.fields import Fields
from engine.spec import LinearRopeScaling, Llama3RopeScaling, ModelSpec, RopeScaling, RopeSpec

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "smollm": "llama", "qwen2": "qwen2"}
"""`model_type` to the name in the model registry."""


def spec_from_config(config: Fields) -> ModelSpec:
    """Raises SpliceError (bad_model_file) for other architectures and for what the Llama family does not compute."""
    model_type = config.string("model_type")
    architecture = _ARCHITECTURES.get(model_type)
    if architecture is None:
        raise bad_file(
            config.path,
            f"model_type {model_type!r} is not supported",
            f"use a model of one of these types: {', '.join(sorted(_ARCHITECTURES))}",
        )
    _refuse_unsupported(config, model_type)
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    attention_bias = config.boolean_or("attention_bias", False)
    spec = ModelSpec(
        architecture=architecture,
        num_layers=config.integer("num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=config.integer_or("num_key_value_heads", heads),
        head_dim=config.integer_or("head_dim", hidden // max(heads, 1)),
        vocab_size=config.integer("vocab_size"),
        max_positions=config.integer_or("max_position_embeddings", 2048),
        rms_norm_eps=config.number_or("rms_norm_eps", 1e-6),
        rope=_rope(config),
        tie_embeddings=config.boolean_or("tie_word_embeddings", False),
        qkv_bias=attention_bias or model_type == "qwen2",
        output_bias=attention_bias,
        mlp_bias=config.boolean_or("mlp_bias", False),
    )
    problems = spec.problems()
    if problems:
        raise bad_file(config.path, "; ".join(problems), "correct the configuration or use another model")
    return spec


def _refuse_unsupported(config: Fields, model_type: str) -> None:
    other_model = "use a model without it"
    activation = config.string_or("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise bad_file(config.path, f"field 'hidden_act' is {activation!r}, expected 'silu'", other_model)
    # Qwen 2 names a window but uses it only when `use_sliding_window` says so; Mistral's is always on.
    windowed = config.boolean_or("use_sliding_window", False) if model_type == "qwen2" else True
    window = config.integer_or("sliding_window", None)
    if windowed and window is not None and window < config.integer_or("max_position_embeddings", 2048):
        raise bad_file(config.path, f"sliding-window attention (window {window}) is not supported", other_model)
    if "quantization_config" in config.values:
        raise bad_file(
            config.path,
            "field 'quantization_config': quantised safetensors are not supported",
            "use the unquantised model or a GGUF file",
        )


def _rope(config: Fields) -> RopeSpec:
    """Both spellings: `rope_theta` beside `rope_scaling`, and the newer single `rope_parameters`."""
    parameters = config.section("rope_parameters")
    if not parameters.values:
        parameters = config.section("rope_scaling")
    theta = parameters.number_or("rope_theta", config.number_or("rope_theta", 10000.0))
    return RopeSpec(theta=theta, scaling=_scaling(parameters))


def _scaling(parameters: Fields) -> RopeScaling | None:
    key = "rope_type" if "rope_type" in parameters.values else "type"
    kind = parameters.string_or(key, "default")
    match kind:
        case "default":
            return None
        case "linear":
            return LinearRopeScaling(parameters.number("factor"))
        case "llama3":
            return Llama3RopeScaling(
                factor=parameters.number("factor"),
                low_freq_factor=parameters.number("low_freq_factor"),
                high_freq_factor=parameters.number("high_freq_factor"),
                original_max_positions=parameters.integer("original_max_position_embeddings"),
            )
        case _:
            raise parameters.wrong(key, "default, linear or llama3")
