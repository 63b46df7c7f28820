"""Quantised matrices as `csrc/cuda/block_form.h` lays them out: quants and scales move, nothing is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.ops.cuda.tensors import refuse

FORMS: dict[str, int] = {
    "q4_0": 0, "q4_1": 1, "q4_k": 2, "groups": 3, "q5_0": 4, "q5_1": 5, "q5_k": 6, "mxfp4": 7, "q6_k": 8, "q8_0": 9,
}  # fmt: skip
"""`SPLICE_CUDA_BLOCK_*` of each kind: ggml's, and four bits with a scale and a zero point for every 128 columns."""
FILE_KINDS = frozenset(FORMS) - {"groups"}
"""ggml's types, which are multiplied as files have them."""
NIBBLE_KINDS = frozenset({"q4_0", "q4_1", "q4_k", "groups"})
"""Those that also go with activations in bfloat16."""
BLOCK_DEPTH, SLICE_BLOCKS, PANEL_COLUMNS = 32, 4, 16
SLICE_DEPTH = BLOCK_DEPTH * SLICE_BLOCKS
SLICE_BYTES: dict[str, int] = {
    "q4_0": 1152, "q4_1": 1280, "q4_k": 1216, "groups": 1088, "q5_0": 1408, "q5_1": 1536, "q5_k": 1472, "mxfp4": 1408,
    "q6_k": 1696, "q8_0": 2176,
}  # fmt: skip
"""Of 16 columns and 128 depths."""
_FILE_BLOCKS = {
    "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34), "mxfp4": (32, 17),
    "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210),
}  # fmt: skip
"""Elements and bytes of a block in a file."""
_SIGN_OF_NIBBLES = 0x8888_8888
"""Turns quants 0 to 15 into quants − 8 as signed numbers of four bits."""
_HALVES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""What the codes of MXFP4 stand for (OCP Microscaling Formats, version 1.0)."""
Array = npt.NDArray[Any]


def pack_blocks(blocks: Array, kind: str, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """`blocks` `[n, bytes of a row]` uint8 of a matrix of `shape` `(n, k)` as its file has them: `[ceil(n / 16),
    ceil(k / 128), bytes of a slice]`. Raises SpliceError where kind or sizes are others; k is a multiple of 32, of 256
    in K-quants."""
    if kind not in FILE_KINDS:
        raise refuse("kind", repr(kind), f"one of {', '.join(sorted(FILE_KINDS))}")
    n, k = shape
    elements, size = _FILE_BLOCKS[kind]
    if k <= 0 or k % elements or n <= 0:
        raise refuse("shape", shape, f"at least one row, and columns a multiple of {elements}")
    expected = (n, k // elements * size)
    if blocks.shape != expected or blocks.dtype != np.uint8:
        raise refuse("blocks", f"{blocks.dtype} {blocks.shape}", f"uint8 {expected}: {kind} of {shape}")
    own = np.ascontiguousarray(blocks).reshape(n, k // elements, size)
    if kind == "q6_k":
        return _slices(_q6_k(own))
    if kind == "mxfp4":
        return _slices(_mxfp4(own))
    return _slices(_k_quant(own, kind) if kind.endswith("_k") else _simple(own, kind))


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
    return _slices(
        [_nibbles(_joined(quants.reshape(n, -1, BLOCK_DEPTH))), _groups(scales), _groups(zeros.astype(np.float16))]
    )


# What files have, as pieces of slices.


def _simple(blocks: Array, kind: str) -> list[Array]:
    halves = 2 if kind.endswith("_1") else 1
    numbers = np.ascontiguousarray(blocks[:, :, : 2 * halves]).view(np.float16)
    scales = [_scales(numbers[:, :, i]) for i in range(halves)]
    if kind == "q8_0":
        return [_bytes(np.ascontiguousarray(blocks[:, :, 2:])), *scales]
    nibbles = np.ascontiguousarray(blocks[:, :, -16:])
    if kind in ("q4_0", "q4_1"):
        words = nibbles.view(np.uint32)
        return [_nibbles(words ^ np.uint32(_SIGN_OF_NIBBLES) if kind == "q4_0" else words), *scales]
    fifth = np.unpackbits(np.ascontiguousarray(blocks[:, :, -20:-16]), axis=2, bitorder="little")
    if kind == "q5_0":
        fifth ^= 1  # quant − 16 in two's complement
    return [_nibbles(nibbles.view(np.uint32)), _fifths(fifth), *scales]


def _mxfp4(blocks: Array) -> list[Array]:
    """Half of the power of two as bfloat16, denormal for the two smallest, and quants in halves in two's complement."""
    exponents = blocks[:, :, 0].astype(np.uint16)
    scales = np.where(exponents > 1, (exponents - 1) << 7, np.uint16(32) << exponents.clip(max=1)).astype(np.uint16)
    scales[exponents == 255] = 0x7FC0  # not a number
    codes = np.concatenate((blocks[:, :, 1:] & 15, blocks[:, :, 1:] >> 4), axis=2)
    quants = (_HALVES[codes] & 31).astype(np.uint8)
    return [_nibbles(_joined(quants & 15)), _fifths(quants >> 4), _scales(scales)]


def _k_quant(blocks: Array, kind: str) -> list[Array]:
    """Q4_K and Q5_K."""
    n, supers = blocks.shape[:2]
    pairs = blocks[:, :, -128:].reshape(n, supers, 4, 1, BLOCK_DEPTH)
    quants = np.concatenate((pairs & 15, pairs >> 4), axis=3).reshape(n, supers * 8, BLOCK_DEPTH)
    six = blocks[:, :, 4:16].reshape(n, supers, 3, 4)
    low = six[:, :, :2] & 63
    high = np.stack((six[:, :, 2] & 15, six[:, :, 2] >> 4), axis=2) | six[:, :, :2] >> 6 << 4
    numbers = np.concatenate((low, high), axis=3).transpose(0, 1, 3, 2).reshape(n, supers * 8, 2)
    sub_scales = _padded(numbers).transpose(0, 3, 2, 4, 5, 1)  # g | block, scale or minimum, high
    halves = np.ascontiguousarray(blocks[:, :, :4]).view(np.float16).repeat(2, axis=1)
    pieces = [_nibbles(_joined(quants))]
    if kind == "q5_k":
        fifth = blocks[:, :, 16:48].reshape(n, supers, 1, BLOCK_DEPTH) >> np.arange(8, dtype=np.uint8)[:, None] & 1
        pieces.append(_fifths(fifth.reshape(n, supers * 8, BLOCK_DEPTH)))
    return [*pieces, sub_scales, _groups(halves[:, :, 0]), _groups(halves[:, :, 1])]


def _q6_k(blocks: Array) -> list[Array]:
    n, supers = blocks.shape[:2]
    nibbles = blocks[:, :, :128].reshape(n, supers, 2, 1, 2, BLOCK_DEPTH)
    low = np.concatenate((nibbles & 15, nibbles >> 4), axis=3).reshape(n, supers * 8, BLOCK_DEPTH)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    tops = blocks[:, :, 128:192].reshape(n, supers, 2, 1, BLOCK_DEPTH) >> shifts & 3
    signed = tops.reshape(n, supers * 8, 2, 4, 4) ^ 2  # halves of 16 depths, q, byte; quant − 32 in two's complement
    fields = _padded(signed).transpose(0, 3, 4, 2, 6, 7, 5, 1)  # block, g, q | byte | half, high
    packed = np.bitwise_or.reduce(fields << np.array([[0, 2], [4, 6]], np.uint8), axis=(6, 7))
    sub_scales = _padded(blocks[:, :, 192:208].reshape(n, supers * 8, 2)).transpose(
        0, 3, 2, 4, 1, 5
    )  # g | block, high, half
    halves = np.ascontiguousarray(blocks[:, :, 208:]).view(np.float16).repeat(2, axis=1)
    return [_nibbles(_joined(low)), packed, sub_scales, _groups(halves[:, :, 0])]


# Pieces of slices: `[panels, slices, …]`, the rest in the order of their bytes.


def _joined(quants: Array) -> Array:
    """Blocks of 32 quants below 16 as four words: 4·q on in the low nibbles of word q, 16 + 4·q on in the high ones."""
    return np.ascontiguousarray(quants[:, :, :16] | quants[:, :, 16:] << 4).view(np.uint32)


def _nibbles(words: Array) -> Array:
    return _padded(words).transpose(0, 3, 4, 2, 5, 1)  # block, g, q | high


def _fifths(bits: Array) -> Array:
    split = _padded(bits.reshape(*bits.shape[:2], 2, 4, 4))  # two blocks, g, q | byte | block of two, half, high
    split = split.reshape(*split.shape[:4], 2, 2, *split.shape[5:]).transpose(0, 3, 4, 2, 7, 8, 5, 6, 1)
    shifts = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    return np.asarray(np.bitwise_or.reduce(split << shifts, axis=(6, 7, 8)))


def _bytes(quants: Array) -> Array:
    split = _padded(quants.view(np.uint32))  # block, g, q | half of the depths, high
    return split.reshape(*split.shape[:5], 2, 4).transpose(0, 3, 4, 2, 6, 5, 1)


def _scales(halves: Array) -> Array:
    return _padded(halves).transpose(0, 3, 2, 4, 1)  # g | block, high


def _groups(halves: Array) -> Array:
    return _padded(halves, 1).transpose(0, 3, 2, 4, 1)  # g | high


def _padded(array: Array, in_slice: int = SLICE_BLOCKS) -> Array:
    """`[n, blocks, …]` as `[panels, 2, 8, slices, in_slice, …]`: columns 8·high + g of a panel; zeros fill up."""
    n, blocks = array.shape[:2]
    panels, slices = -(-n // PANEL_COLUMNS), -(-blocks // in_slice)
    out = np.zeros((panels * PANEL_COLUMNS, slices * in_slice, *array.shape[2:]), array.dtype)
    out[:n, :blocks] = array
    return out.reshape(panels, 2, 8, slices, in_slice, *array.shape[2:])


def _slices(pieces: list[Array]) -> npt.NDArray[np.uint8]:
    flat = [np.ascontiguousarray(piece).view(np.uint8) for piece in pieces]
    return np.concatenate([piece.reshape(*piece.shape[:2], -1) for piece in flat], axis=2)
