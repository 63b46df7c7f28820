"""Quantised matrices as `csrc/cuda/block_form.h` lays them out: quants and scales move, nothing is rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.ops.cuda.tensors import refuse

FORMS: dict[str, int] = {"q4_0": 0, "q4_1": 1, "q5_0": 2, "q8_0": 2, "groups": 3}
"""`SPLICE_CUDA_BLOCK_*` of each kind: ggml's, and four bits with a scale and a zero point for every 128 columns."""
FILE_KINDS = frozenset({"q4_0", "q4_1", "q5_0", "q8_0"})
"""ggml's types that are multiplied as files have them."""
NIBBLE_KINDS = frozenset({"q4_0", "q4_1", "groups"})
"""Those of four bits, which also go with activations in bfloat16."""
BLOCK_DEPTH, SLICE_BLOCKS, PANEL_COLUMNS = 32, 4, 16
SLICE_DEPTH = BLOCK_DEPTH * SLICE_BLOCKS
_SCALE_BYTES = {"q4_0": 128, "q4_1": 256, "q5_0": 128, "q8_0": 128, "groups": 64}
"""Of a slice."""
_BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q8_0": 34}
_HEADER_BYTES = {"q4_0": 2, "q4_1": 4, "q5_0": 6, "q8_0": 2}
_SIGN_OF_NIBBLES = 0x8888_8888
"""Turns quants 0 to 15 into quants − 8 as signed numbers of four bits."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Matrix:
    words: Array
    """Quants of `[n, k / 32]` blocks, uint32: `[…, 4]`, depths 4·q on in the low nibbles of word q, 16 + 4·q on in the
    high ones; or `[…, 8]`, a byte each, in order."""
    scales: Sequence[Array]
    """Scales, then minima or zero points, as the bits of fp16: `[n, k / 32]`, or `[n, k / 128]` each."""


def pack_blocks(blocks: Array, kind: str, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """`blocks` `[n, bytes of a row]` uint8 of a matrix of `shape` `(n, k)`, k a multiple of 32, as its file has them:
    `[ceil(n / 16), ceil(k / 128), bytes of a slice]`. Raises SpliceError where kind or sizes are others."""
    if kind not in FILE_KINDS:
        raise refuse("kind", repr(kind), f"one of {', '.join(sorted(FILE_KINDS))}")
    n, k = shape
    if k <= 0 or k % BLOCK_DEPTH or n <= 0:
        raise refuse("shape", shape, f"at least one row, and columns a multiple of {BLOCK_DEPTH}")
    expected = (n, k // BLOCK_DEPTH * _BLOCK_BYTES[kind])
    if blocks.shape != expected or blocks.dtype != np.uint8:
        raise refuse("blocks", f"{blocks.dtype} {blocks.shape}", f"uint8 {expected}: {kind} of {shape}")
    return _laid_out(_read(np.ascontiguousarray(blocks).reshape(n, k // BLOCK_DEPTH, -1), kind), n, k)


def pack_groups(quants: Array, scales: Array, zeros: Array) -> npt.NDArray[np.uint8]:
    """As `pack_blocks`, of `quants` `[n, k]` uint8 from 0 to 15, whose values are (quant − zero) · scale with float16
    `scales` and uint8 `zeros` from 0 to 15, both `[n, k / 128]`: what AWQ makes, and GPTQ where columns keep their
    order."""
    n, k = quants.shape
    if k % SLICE_DEPTH or not quants.size or quants.dtype != np.uint8 or quants.max() > 15:
        raise refuse("quants", f"{quants.dtype} {quants.shape}", f"uint8 up to 15, columns a multiple of {SLICE_DEPTH}")
    groups = (n, k // SLICE_DEPTH)
    if scales.shape != groups or scales.dtype != np.float16:
        raise refuse("scales", f"{scales.dtype} {scales.shape}", f"float16 {groups}")
    if zeros.shape != groups or zeros.dtype != np.uint8 or zeros.max() > 15:
        raise refuse("zeros", f"{zeros.dtype} {zeros.shape}", f"uint8 {groups} up to 15")
    halves = quants.reshape(n, k // BLOCK_DEPTH, 2, BLOCK_DEPTH // 2)
    words = np.ascontiguousarray(halves[:, :, 0] | halves[:, :, 1] << 4).view(np.uint32)
    return _laid_out(_Matrix(words, (scales.view(np.uint16), zeros.astype(np.float16).view(np.uint16))), n, k)


def slice_bytes(kind: str) -> int:
    """Of 16 columns and 128 depths."""
    return PANEL_COLUMNS * SLICE_DEPTH // (2 if kind in NIBBLE_KINDS else 1) + _SCALE_BYTES[kind]


def _read(blocks: Array, kind: str) -> _Matrix:
    header = _HEADER_BYTES[kind]
    halves = np.ascontiguousarray(blocks[:, :, : 4 if kind == "q4_1" else 2]).view(np.uint16)
    quants = np.ascontiguousarray(blocks[:, :, header:])
    words = quants.view(np.uint32)
    if kind == "q4_0":
        words = words ^ np.uint32(_SIGN_OF_NIBBLES)
    if kind == "q5_0":
        fifth = np.unpackbits(np.ascontiguousarray(blocks[:, :, 2:header]), axis=2, bitorder="little")
        wide = np.concatenate((quants & 15, quants >> 4), axis=2) | fifth << 4
        words = (wide.astype(np.int8) - np.int8(16)).view(np.uint32)
    return _Matrix(words, [halves[:, :, i] for i in range(halves.shape[2])])


def _laid_out(matrix: _Matrix, n: int, k: int) -> npt.NDArray[np.uint8]:
    panels, slices = -(-n // PANEL_COLUMNS), -(-k // SLICE_DEPTH)
    pieces = [_quants(_padded(matrix.words, panels, slices * SLICE_BLOCKS))]
    for scales in matrix.scales:
        count = slices if scales.shape[1] * SLICE_DEPTH == k else slices * SLICE_BLOCKS
        pieces.append(_scales(_padded(scales, panels, count), slices))
    return np.concatenate([piece.view(np.uint8).reshape(panels, slices, -1) for piece in pieces], axis=2)


def _padded(array: Array, panels: int, count: int) -> Array:
    """`[panels, 2, 8, count, …]`: columns 8·high + g of a panel; zeros fill up."""
    out = np.zeros((panels * PANEL_COLUMNS, count, *array.shape[2:]), array.dtype)
    out[: array.shape[0], : array.shape[1]] = array
    return out.reshape(panels, 2, 8, count, *array.shape[2:])


def _quants(words: Array) -> Array:
    panels, high, g, blocks, count = words.shape
    slices = blocks // SLICE_BLOCKS
    if count == 4:  # half of a slice, g, q | which of two blocks, high
        split = words.reshape(panels, high, g, slices, 2, 2, 4)
    else:  # block, g, q | half of the depths, high
        split = words.reshape(panels, high, g, slices, SLICE_BLOCKS, 2, 4)
    return np.ascontiguousarray(split.transpose(0, 3, 4, 2, 6, 5, 1))


def _scales(halves: Array, slices: int) -> Array:
    panels, high, g, count = halves.shape  # g | block, high
    return np.ascontiguousarray(halves.reshape(panels, high, g, slices, count // slices).transpose(0, 3, 2, 4, 1))
