"""Rotary embedding in `config.json`, to a `RopeSpec`."""

from __future__ import annotations

import math

from engine.formats.fields import Fields
from engine.rope_spec import (
    DynamicRopeScaling,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    RopeScaling,
    RopeSpec,
    YarnRopeScaling,
)

_KINDS = "default, linear, dynamic, llama3, yarn or longrope"


def rope_from_config(config: Fields, head_dim: int) -> RopeSpec:
    """Both spellings: `rope_theta` beside `rope_scaling`, and the newer single `rope_parameters`.

    Raises SpliceError (bad_model_file) for a kind of scaling that nobody computes, naming the field.
    """
    parameters = config.section("rope_parameters")
    if any(isinstance(value, dict) for value in parameters.values.values()):
        raise config.wrong("rope_parameters", "one rope for all layers")
    if not parameters.values:
        parameters = config.section("rope_scaling")
    return rope_from_parameters(config, parameters, head_dim, theta=config.number_or("rope_theta", 10000.0))


def rope_from_parameters(config: Fields, parameters: Fields, head_dim: int, theta: float) -> RopeSpec:
    """One rope of a model that may have several. `theta` is the base where `parameters` name none."""
    part = parameters.number_or("partial_rotary_factor", config.number_or("partial_rotary_factor", 1.0))
    turning = int(head_dim * part)
    return RopeSpec(
        theta=parameters.number_or("rope_theta", theta),
        scaling=_scaling(config, parameters),
        rotary_dim=None if turning == head_dim else turning,
    )


def _scaling(config: Fields, parameters: Fields) -> RopeScaling | None:
    key = "rope_type" if "rope_type" in parameters.values else "type"
    kind = parameters.string_or(key, "default")
    match kind:
        case "default":
            return None
        case "linear":
            return LinearRopeScaling(parameters.number("factor"))
        case "dynamic":
            return DynamicRopeScaling(parameters.number("factor"), config.integer("max_position_embeddings"))
        case "llama3":
            return Llama3RopeScaling(
                factor=parameters.number("factor"),
                low_freq_factor=parameters.number("low_freq_factor"),
                high_freq_factor=parameters.number("high_freq_factor"),
                original_max_positions=parameters.integer("original_max_position_embeddings"),
            )
        case "yarn":
            return _yarn(config, parameters)
        case "longrope" | "su":
            return _longrope(config, parameters)
        case _:
            raise parameters.wrong(key, _KINDS)


def _original_positions(config: Fields, parameters: Fields) -> int:
    """Phi-3 has the field beside `rope_scaling`, others in it, some nowhere: then the context was not extended."""
    own = parameters.integer_or("original_max_position_embeddings", config.integer("max_position_embeddings"))
    return config.integer_or("original_max_position_embeddings", own)


def _yarn(config: Fields, parameters: Fields) -> YarnRopeScaling:
    original = _original_positions(config, parameters)
    factor = parameters.number_or("factor", config.integer("max_position_embeddings") / max(original, 1))
    attention_factor = parameters.number_or("attention_factor", None)
    if attention_factor is None:
        numerator, denominator = parameters.number_or("mscale", 0.0), parameters.number_or("mscale_all_dim", 0.0)
        if numerator and denominator:
            attention_factor = yarn_mscale(factor, numerator) / yarn_mscale(factor, denominator)
        else:
            attention_factor = yarn_mscale(factor)
    return YarnRopeScaling(
        factor=factor,
        original_max_positions=original,
        beta_fast=parameters.number_or("beta_fast", 32.0),
        beta_slow=parameters.number_or("beta_slow", 1.0),
        attention_factor=attention_factor,
        truncate=parameters.boolean_or("truncate", True),
    )


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """How much sharper attention must be in a context `factor` times as long (arXiv 2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(config: Fields, parameters: Fields) -> LongRopeScaling:
    original = _original_positions(config, parameters)
    factor = parameters.number_or("factor", config.integer("max_position_embeddings") / max(original, 1))
    grown = 1.0 if factor <= 1 or original <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        short_factors=_numbers(parameters, "short_factor"),
        long_factors=_numbers(parameters, "long_factor"),
        original_max_positions=original,
        attention_factor=parameters.number_or("attention_factor", grown),
    )


def _numbers(fields: Fields, key: str) -> tuple[float, ...]:
    values = fields.array(key)
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise fields.wrong(key, "a list of numbers")
    return tuple(float(value) for value in values)
