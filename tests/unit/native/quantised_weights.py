"""Quantised matrices as GGUF files have them, with their values as the gguf package reads them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from engine._native import PackedLinear

SIMPLE_KINDS = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"]
K_KINDS = ["q4_k", "q5_k", "q6_k"]
KINDS = [*SIMPLE_KINDS, *K_KINDS]

_HALVES = {"q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}
"""Where a K-quant's block has fp16 numbers."""


def random_blocks(n: int, k: int, kind: str) -> npt.NDArray[np.uint8]:
    """A weight `[n, k]` as a file stores it, `[n, bytes of a row]`: of K-quants every bit is drawn, which no quantiser
    would give."""
    generator = np.random.default_rng(n * 1000 + k)
    stored = GGMLQuantizationType[kind.upper()]
    if kind in SIMPLE_KINDS:
        weight = generator.standard_normal((n, k), dtype=np.float32)
        weight[0, :32] = 0.0
        weight[-1, -32:] *= 1e-6  # scales that are denormal in fp16
        return quantize(weight, stored)
    elements, size = GGML_QUANT_SIZES[stored]
    blocks = generator.integers(0, 256, (n, k // elements, size), dtype=np.uint8)
    for place in _HALVES[kind]:
        scales = generator.uniform(-0.01, 0.01, (n, k // elements)).astype(np.float16)
        blocks[:, :, place : place + 2] = scales[:, :, None].view(np.uint8)
    return blocks.reshape(n, -1)


def every_scale_of_mxfp4() -> npt.NDArray[np.uint8]:
    """A row of 32 for each scale that is a number, 255 of them, with every code twice."""
    codes = np.tile(np.arange(16, dtype=np.uint8) * 17, (255, 1))
    return np.concatenate((np.arange(255, dtype=np.uint8)[:, None], codes), axis=1)


def values_of(blocks: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.float32]:
    return np.array(dequantize(blocks, GGMLQuantizationType[kind.upper()]), dtype=np.float32)


def packed(blocks: npt.NDArray[np.uint8], k: int, kind: str, into: str | None = None) -> PackedLinear:
    """Loaded in two pieces, the later one first."""
    n = len(blocks)
    matrix = PackedLinear(n, k, into or kind)
    cut = n // 3
    matrix.load_blocks(blocks[cut:], kind, cut)
    matrix.load_blocks(blocks[:cut], kind, 0)
    return matrix
