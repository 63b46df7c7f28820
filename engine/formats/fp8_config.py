"""What `quantization_config` says of FP8 weights, in the three spellings that models are published in.

- `fp8`: DeepSeek-V3 and Qwen 3 with scales of 128 × 128 blocks (`weight_block_size`), others with one a matrix;
- `compressed-tensors` with format `float-quantized`: scales of matrices, rows (`channel`) or blocks;
- `fbgemm_fp8`: scales of rows. Its `activation_scale_ub`, a bound on the magnitudes of activations, is not applied:
  what lies beyond it keeps its magnitude.

Lists of modules that are left as they are (`ignore`, `modules_to_not_convert`) are not read: each tensor's type says
what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.formats.bad_file import bad_file
from engine.formats.fields import Fields
from wire.errors import SpliceError

KEY = "quantization_config"
Fp8Activations = Literal["dynamic", "static", "bfloat16"]
"""What a file says its weights were made to meet: codes scaled row by row as they come, codes under a scale that the
file has, or bfloat16."""
_BLOCK = [128, 128]
_REMEDY = "use the unquantised model, one in FP8 (fp8, compressed-tensors' float-quantized, fbgemm_fp8) or a GGUF file"


@dataclass(frozen=True, slots=True)
class Fp8Scheme:
    """How a directory's FP8 tensors are scaled."""

    has_blocks: bool
    """Whether a scale is that of 128 × 128 elements; else of a matrix or a row, as its shape says."""
    activations: Fp8Activations


def quantisation_method(config: Fields) -> str | None:
    """`quant_method`; None for a model that is not quantised. Raises SpliceError where there is no such word."""
    section = config.section(KEY)
    if not section.values:
        return None
    method = section.values.get("quant_method")
    if not isinstance(method, str):
        raise _wrong(section, "quant_method", method, "the name of a method")
    return method


def fp8_scheme(config: Fields) -> Fp8Scheme | None:
    """None for a model that is not quantised. Raises SpliceError (bad_model_file) naming the field for every way of
    quantising that is not read."""
    method = quantisation_method(config)
    if method is None:
        return None
    if method not in _READERS:
        raise _wrong(config.section(KEY), "quant_method", method, " or ".join(_READERS))
    return _READERS[method](config.section(KEY))


def _fine_grained(section: Fields) -> Fp8Scheme:
    _expect(section, "", section.values, {"fmt": ("e4m3", "float8_e4m3fn"), "expert_dtype": ("fp8",)})
    scheme = section.values.get("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        raise _wrong(section, "activation_scheme", scheme, "dynamic or static")
    block = section.values.get("weight_block_size")
    if block is None:
        return Fp8Scheme(has_blocks=False, activations=scheme)
    if block != _BLOCK:
        raise _wrong(section, "weight_block_size", block, "[128, 128] or none")
    if scheme == "static":
        raise _wrong(section, "activation_scheme", scheme, "dynamic, because weights are scaled in blocks")
    return Fp8Scheme(has_blocks=True, activations="dynamic")


def _of_rows(section: Fields) -> Fp8Scheme:
    return Fp8Scheme(has_blocks=False, activations="dynamic")


def _compressed(section: Fields) -> Fp8Scheme:
    found = section.values.get("format")
    if found != "float-quantized":
        raise _wrong(section, "format", found, "float-quantized")
    groups = section.section("config_groups").values
    schemes = {_of_group(section, f"config_groups.{name}", group) for name, group in groups.items()}
    if len(schemes) != 1:
        raise _wrong(section, "config_groups", sorted(groups), "groups that are scaled alike, one at least")
    return schemes.pop()


def _of_group(section: Fields, name: str, group: Any) -> Fp8Scheme:
    if not isinstance(group, dict):
        raise _wrong(section, name, group, "an object")
    weights, rows = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, dict) or not isinstance(rows, dict | None):
        raise _wrong(section, name, group, "objects for weights and input_activations")
    _expect(section, f"{name}.", group, {"format": ("float-quantized",)})
    eight_bits = {"num_bits": (8,), "type": ("float",), "symmetric": (True,)}
    of_weights = {**eight_bits, "strategy": ("tensor", "channel", "block"), "dynamic": (False,)}
    _expect(section, f"{name}.weights.", weights, of_weights, required=("num_bits", "type", "strategy"))
    has_blocks = weights["strategy"] == "block"
    if has_blocks and weights.get("block_structure") != _BLOCK:
        raise _wrong(section, f"{name}.weights.block_structure", weights.get("block_structure"), "[128, 128]")
    if rows is None:
        return Fp8Scheme(has_blocks, "bfloat16")
    of_rows = {**eight_bits, "strategy": ("tensor", "token", "group"), "dynamic": (False, True)}
    _expect(section, f"{name}.input_activations.", rows, of_rows, required=("num_bits", "type", "strategy"))
    if rows.get("dynamic"):
        return Fp8Scheme(has_blocks, "dynamic")
    if has_blocks or rows["strategy"] != "tensor":
        raise _wrong(section, f"{name}.input_activations.dynamic", rows.get("dynamic"), "true, or one scale a matrix")
    return Fp8Scheme(has_blocks, "static")


_READERS: Mapping[str, Callable[[Fields], Fp8Scheme]] = {
    "fp8": _fine_grained,
    "compressed-tensors": _compressed,
    "fbgemm_fp8": _of_rows,
}


def _expect(
    section: Fields,
    prefix: str,
    values: Mapping[str, Any],
    allowed: Mapping[str, tuple[Any, ...]],
    required: tuple[str, ...] = (),
) -> None:
    """That each field is one of what is allowed, or absent where it is not required."""
    for key, choices in allowed.items():
        value = values.get(key)
        if value not in choices and (value is not None or key in required):
            raise _wrong(section, prefix + key, value, " or ".join(map(_spelled, choices)))


def _wrong(section: Fields, field: str, value: object, expected: str) -> SpliceError:
    found = "missing" if value is None else _spelled(value)
    return bad_file(section.path, f"field '{KEY}.{field}' is {found}, expected {expected}", _REMEDY)


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
