"""Every way of quantising that is not read is refused naming its field; what is read is understood."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from fp8_files import FORMATS

from engine.formats.fields import Fields
from engine.formats.fp8_config import Fp8Scheme, fp8_scheme
from wire.errors import ErrorCode, SpliceError

_SCHEMES = {
    "fp8-blocks": Fp8Scheme(has_blocks=True, activations="dynamic"),
    "fp8-tensor": Fp8Scheme(has_blocks=False, activations="dynamic"),
    "fp8-static": Fp8Scheme(has_blocks=False, activations="static"),
    "fp8-static-inverse": Fp8Scheme(has_blocks=False, activations="static"),
    "compressed-channel": Fp8Scheme(has_blocks=False, activations="dynamic"),
    "compressed-tensor": Fp8Scheme(has_blocks=False, activations="static"),
    "compressed-weights": Fp8Scheme(has_blocks=False, activations="bfloat16"),
    "compressed-blocks": Fp8Scheme(has_blocks=True, activations="dynamic"),
    "fbgemm": Fp8Scheme(has_blocks=False, activations="dynamic"),
}


def _read(configuration: Any) -> Fp8Scheme | None:
    return fp8_scheme(Fields(Path("config.json"), {"quantization_config": configuration}))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_says_how_codes_are_scaled_and_what_they_meet(kind: str) -> None:
    assert _read(FORMATS[kind][0]) == _SCHEMES[kind]


def test_a_model_without_such_a_field_is_not_quantised() -> None:
    assert _read(None) is None
    assert fp8_scheme(Fields(Path("config.json"), {})) is None


_GROUP = "config_groups.group_0"


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("fp8-blocks", "quant_method", "awq"),
        ("fp8-blocks", "quant_method", "mxfp4"),
        ("fp8-blocks", "quant_method", None),
        ("fp8-blocks", "fmt", "e5m2"),
        ("fp8-blocks", "expert_dtype", "fp4"),
        ("fp8-blocks", "weight_block_size", [64, 128]),
        ("fp8-blocks", "weight_block_size", 128),
        ("fp8-blocks", "activation_scheme", "static"),
        ("fp8-tensor", "activation_scheme", "sometimes"),
        ("compressed-channel", "format", "pack-quantized"),
        ("compressed-channel", "format", None),
        ("compressed-channel", "config_groups", {}),
        ("compressed-channel", _GROUP, "Linear"),
        ("compressed-channel", f"{_GROUP}.format", "nvfp4-pack-quantized"),
        ("compressed-channel", f"{_GROUP}.weights.num_bits", 4),
        ("compressed-channel", f"{_GROUP}.weights.type", "int"),
        ("compressed-channel", f"{_GROUP}.weights.strategy", "group"),
        ("compressed-channel", f"{_GROUP}.weights.symmetric", False),
        ("compressed-channel", f"{_GROUP}.input_activations.num_bits", 4),
        ("compressed-channel", f"{_GROUP}.input_activations.dynamic", False),
        ("compressed-blocks", f"{_GROUP}.weights.block_structure", [64, 64]),
        ("compressed-blocks", f"{_GROUP}.input_activations.dynamic", False),
    ],
)
def test_what_is_not_read_is_refused_naming_field_and_remedy(kind: str, field: str, value: Any) -> None:
    configuration = copy.deepcopy(FORMATS[kind][0])
    *path, last = field.split(".")
    section = configuration
    for key in path:
        section = section[key]
    section[last] = value
    with pytest.raises(SpliceError, match=f"'quantization_config.{field}' is .*, expected .*; use the") as refused:
        _read(configuration)
    assert refused.value.code is ErrorCode.BAD_MODEL_FILE


def test_groups_that_are_scaled_in_different_ways_are_refused() -> None:
    configuration = copy.deepcopy(FORMATS["compressed-channel"][0])
    configuration["config_groups"]["group_1"] = FORMATS["compressed-tensor"][0]["config_groups"]["group_0"]
    with pytest.raises(SpliceError, match="config_groups"):
        _read(configuration)
