"""FP8 as safetensors hold it: a tensor of e4m3 codes and, beside it, one of scales. A value is code · scale.

Codes have one sign, four exponent and three mantissa bits, no infinity and one NaN of either sign (OCP 8-bit Floating
Point Specification, version 1.0). A scale is that of a matrix, of a row, or of 128 × 128 elements (DeepSeek-V3, arXiv
2412.19437); here it becomes one of a row or of such a block.

Who cannot multiply codes gets the bfloat16 that DeepSeek's own converter makes of them: the float32 product, rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.stored import Stored

Floats = npt.NDArray[np.float32]
ROWS, BLOCKS = "fp8_rows", "fp8_blocks"
"""As `StoredMatrix` has them."""
DTYPE = "F8_E4M3"
"""As safetensors spell it."""
BLOCK = 128
SCALES = ("_scale_inv", "_scale")
"""What is appended to a tensor's name for its scales. Either is multiplied with."""
INPUT_SCALES = ("input_scale", "activation_scale")
"""What stands in place of `weight` for the scale of the rows a matrix meets."""
_LARGEST = 448.0
_MOST_SCALE = 3.3895e38 / _LARGEST
"""So that no value is beyond bfloat16."""
_NAN, _SIGN = 0x7F, 0x80
_CHUNK = 1 << 18
"""Elements that are looked at together: few enough for a cache."""


def _e4m3_values() -> Floats:
    codes = np.arange(_SIGN)
    exponent, mantissa = codes >> 3, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[_NAN] = np.nan
    return np.concatenate((values, -values)).astype(np.float32)


VALUES = _e4m3_values()
"""Of every code."""


@dataclass(frozen=True, slots=True)
class Fp8Tensor:
    """What was picked of a stored tensor, outputs as rows."""

    codes: npt.NDArray[np.uint8]
    """`[rows, columns]`, perhaps a view of the file."""
    scales: Floats
    """`fp8_rows`: `[rows]`. `fp8_blocks`: `[ceil(rows / 128), ceil(columns / 128)]`. Else: `[rows, the same]`."""
    kind: str | None
    """As `StoredMatrix` has it; None where rows of one block came apart and each has its own row of scales."""


def scale_shapes(stored: Stored, shape: tuple[int, ...], *, has_blocks: bool) -> list[tuple[int, ...]]:
    """Which shapes the scales may have of the tensor that the wanted `shape` is in."""
    *lead, rows, columns = stored.shape(shape)
    if has_blocks:
        return [(*lead, -(-rows // BLOCK), -(-columns // BLOCK))]
    of_row = (*lead, 1, columns) if stored.is_transposed else (*lead, rows, 1)
    outputs = columns if stored.is_transposed else rows
    return [of_row, (*lead, outputs), (*lead, 1), (*lead, 1, 1), tuple(lead)]


def laid_out(stored: Stored, codes: npt.NDArray[np.uint8], scales: Floats, *, has_blocks: bool) -> Fp8Tensor:
    """What is wanted of a stored tensor, given its codes, of its member where it has several, and all its scales."""
    if stored.member is not None:
        scales = scales.reshape(stored.member.of, *scales.shape[1:])[stored.member.index]
    picked = stored.picked(codes)
    rows = np.arange(len(picked)) if stored.pick is None else stored.pick.rows
    if not has_blocks:
        outputs = codes.shape[1 if stored.is_transposed else 0]
        return Fp8Tensor(picked, np.broadcast_to(scales.ravel(), outputs)[rows], ROWS)
    of_blocks = scales.T if stored.is_transposed else scales
    source = rows // BLOCK
    first = source[::BLOCK]
    if np.array_equal(np.repeat(first, BLOCK)[: len(source)], source):
        return Fp8Tensor(picked, np.ascontiguousarray(of_blocks[first]), BLOCKS)
    return Fp8Tensor(picked, of_blocks[source], None)


def refuse_scales(path: Path, name: str, scales: Floats) -> None:
    """Raises SpliceError for a scale of the tensor `name` that is no positive number, or so large that values are
    none."""
    wrong = ~((scales > 0) & (scales <= _MOST_SCALE))
    if wrong.any():
        raise bad_file(
            path,
            f"tensor {name} has a scale of {scales[wrong].flat[0]}, expected numbers above 0 and up to "
            f"{_MOST_SCALE:.1e}",
            DOWNLOAD_AGAIN,
        )


def refuse_codes(path: Path, name: str, codes: npt.NDArray[np.uint8]) -> None:
    """Raises SpliceError when there is a NaN among the codes of the tensor `name`."""
    for part in _chunks(codes):
        if ((part & _NAN) == _NAN).any():
            raise bad_file(
                path,
                f"tensor {name} has an e4m3 code that is no number (0x7f or 0xff), expected numbers",
                DOWNLOAD_AGAIN,
            )


def as_bfloat16(tensor: Fp8Tensor) -> npt.NDArray[np.uint16]:
    """`[rows, columns]`, bits: code · scale in float32, rounded to the nearest, to even in the middle."""
    codes, columns = tensor.codes, tensor.codes.shape[1]
    out, first = np.empty(codes.shape, np.uint16), 0
    for part in _chunks(codes):
        rows = slice(first, first + len(part))
        bits = (VALUES[part] * _spread(tensor, rows, columns)).view(np.uint32)
        bits += 0x7FFF + ((bits >> 16) & 1)
        out[rows] = bits >> 16
        first += len(part)
    return out


def _spread(tensor: Fp8Tensor, rows: slice, columns: int) -> Floats:
    """The scales of these rows, to be multiplied with their codes."""
    if tensor.kind == ROWS:
        return tensor.scales[rows, None]
    of_rows = tensor.scales[rows] if tensor.kind is None else tensor.scales[np.arange(rows.start, rows.stop) // BLOCK]
    return np.repeat(of_rows, BLOCK, axis=1)[:, :columns]


def _chunks(codes: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """Rows of it, some at a time."""
    step = max(1, _CHUNK // max(1, codes.shape[1]))
    return [codes[first : first + step] for first in range(0, len(codes), step)]
