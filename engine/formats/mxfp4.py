"""MXFP4 as GPT-OSS's safetensors hold it: a tensor of 4-bit codes and one of scales, 32 values a scale.

Values are 4-bit floats with one sign, two exponent and one mantissa bit, scales powers of two (OCP Microscaling
Formats, version 1.0). GGUF keeps the same numbers in blocks of its own, which the `gguf` package knows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GROUP = 32
"""Values that share a scale."""
BLOCKS, SCALES = "_blocks", "_scales"
"""What is appended to a tensor's name for its codes, uint8 `[..., columns / 32, 16]`, and its scales, uint8
`[..., columns / 32]`. A byte holds two neighbouring values, the first in its low half."""
_CODES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_CODES, *(-value for value in _CODES)])
_POWERS = np.array([*(2.0 ** (code - 127) for code in range(255)), np.nan])


def dequantised(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """`[..., columns]`, exact: a value has two significant bits and a scale one. NaN under the reserved scale,
    infinite where the product is beyond float32."""
    codes = np.stack((blocks & 0xF, blocks >> 4), axis=-1).reshape(*blocks.shape[:-1], GROUP)
    with np.errstate(over="ignore"):
        values: npt.NDArray[np.float32] = (_VALUES[codes] * _POWERS[scales][..., None]).astype(np.float32)
    return values.reshape(*scales.shape[:-1], -1)
