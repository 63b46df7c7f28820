"""MXFP4 as GPT-OSS's safetensors hold it, a tensor of 4-bit codes and one of scales, and as GGUF does, in blocks.

Values are 4-bit floats with one sign, two exponent and one mantissa bit; 32 share a scale, a power of two written as
its exponent plus 127, of which 255 is reserved for what is no number (OCP Microscaling Formats, version 1.0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file

KIND = "mxfp4"
"""As `StoredMatrix` has it."""
GROUP = 32
"""Values that share a scale."""
BLOCKS, SCALES = "_blocks", "_scales"
"""What is appended to a tensor's name for its codes, uint8 `[..., columns / 32, 16]`, and its scales, uint8
`[..., columns / 32]`. A byte holds two neighbouring values, the first in its low half."""
_GGUF_BLOCK_BYTES = 1 + GROUP // 2
_CODES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_CODES, *(-value for value in _CODES)])
RESERVED_SCALE = 255
_POWERS = np.array([*(2.0 ** (code - 127) for code in range(RESERVED_SCALE)), np.nan])


def scales_of_gguf(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`[..., columns / 32]` of GGUF's rows of blocks."""
    scales: npt.NDArray[np.uint8] = rows.reshape(*rows.shape[:-1], -1, _GGUF_BLOCK_BYTES)[..., 0]
    return scales


def as_gguf(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The numbers of a matrix as GGUF's rows of blocks, `[rows, columns / 32 * 17]`: the scale, then bytes of which the
    low halves are the codes of the first 16 values and the high halves those of the others."""
    codes = np.stack((blocks & 0xF, blocks >> 4), axis=-1).reshape(*blocks.shape[:-1], GROUP)
    pairs = codes[..., : GROUP // 2] | codes[..., GROUP // 2 :] << 4
    return np.concatenate((scales[..., None], pairs), axis=-1).reshape(len(scales), -1)


def refuse_reserved(path: Path, name: str, scales: npt.NDArray[np.uint8]) -> None:
    """Raises SpliceError when a block of the file's tensor is no number: its products would be none either."""
    if (scales == RESERVED_SCALE).any():
        raise bad_file(
            path,
            f"tensor {name} has an MXFP4 scale of {RESERVED_SCALE}, which is reserved for what is no number, expected "
            f"0 to {RESERVED_SCALE - 1}",
            DOWNLOAD_AGAIN,
        )


def dequantised(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """`[..., columns]`, exact: a value has two significant bits and a scale one. Infinite where the product is beyond
    float32, NaN under the reserved scale, which `refuse_reserved` keeps out."""
    codes = np.stack((blocks & 0xF, blocks >> 4), axis=-1).reshape(*blocks.shape[:-1], GROUP)
    with np.errstate(over="ignore"):
        values: npt.NDArray[np.float32] = (_VALUES[codes] * _POWERS[scales][..., None]).astype(np.float32)
    return values.reshape(*scales.shape[:-1], -1)
