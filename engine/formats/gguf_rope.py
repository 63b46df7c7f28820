"""Rotary embedding in GGUF metadata, to a `RopeSpec`."""

from __future__ import annotations

from engine.formats.gguf_file import GgufFile
from engine.formats.hf_rope import yarn_mscale
from engine.rope_spec import (
    FactorRopeScaling,
    LinearRopeScaling,
    LongRopeScaling,
    RopeScaling,
    RopeSpec,
    YarnRopeScaling,
)

_FACTORS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"


def rope_from_gguf(file: GgufFile, name: str, head_dim: int) -> RopeSpec:
    """The rope of GGUF architecture `name`. Raises SpliceError (bad_model_file) for scaling that nobody computes."""
    turning = file.fields.integer_or(f"{name}.rope.dimension_count", head_dim)
    return RopeSpec(
        theta=file.fields.number_or(f"{name}.rope.freq_base", 10000.0),
        scaling=_scaling(file, name, turning),
        rotary_dim=None if turning == head_dim else turning,
    )


def _scaling(file: GgufFile, name: str, turning: int) -> RopeScaling | None:
    fields, scaling = file.fields, f"{name}.rope.scaling"
    if _FACTORS in file:
        return FactorRopeScaling(_factors(file, _FACTORS, turning))
    if _LONG in file:
        return LongRopeScaling(
            short_factors=_factors(file, _SHORT, turning),
            long_factors=_factors(file, _LONG, turning),
            original_max_positions=fields.integer(f"{scaling}.original_context_length"),
            attention_factor=fields.number_or(f"{scaling}.attn_factor", 1.0),
        )
    kind = fields.string_or(f"{scaling}.type", "none")
    match kind:
        case "none":
            return None
        case "linear":
            return LinearRopeScaling(fields.number(f"{scaling}.factor"))
        case "yarn":
            factor = fields.number(f"{scaling}.factor")
            return YarnRopeScaling(
                factor=factor,
                original_max_positions=fields.integer(f"{scaling}.original_context_length"),
                beta_fast=fields.number_or(f"{scaling}.yarn_beta_fast", 32.0),
                beta_slow=fields.number_or(f"{scaling}.yarn_beta_slow", 1.0),
                attention_factor=fields.number_or(f"{scaling}.attn_factor", 1.0) * yarn_mscale(factor),
            )
        case _:
            raise fields.wrong(f"{scaling}.type", f"none, linear or yarn, or the tensors {_SHORT} and {_LONG}")


def _factors(file: GgufFile, tensor: str, turning: int) -> tuple[float, ...]:
    return tuple(file.tensor(tensor, (turning // 2,)).tolist())
