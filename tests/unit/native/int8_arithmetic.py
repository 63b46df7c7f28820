"""The documented arithmetic of int8 activations, slowly: exact integers, then one chain of float32 operations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

Floats = npt.NDArray[np.float32]
_OFFSETS = {"q4_0": 8, "q5_0": 16}
_HALVES_OF_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])


def quantised_rows(x: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Quants `[m, k / 32, 32]` and scales `[m, k / 32]`."""
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=2)
    counts = largest >= np.float32(2.0**-100)
    safe = np.where(counts, largest, np.float32(1))
    inverse = np.where(counts, np.float32(127) / safe, np.float32(0)).astype(np.float32)
    quants = np.rint(blocks * inverse[:, :, None]).astype(np.int64)
    return quants, np.where(counts, safe / np.float32(127), np.float32(0)).astype(np.float32)


def product(x: Floats, blocks: npt.NDArray[np.uint8], kind: str) -> Floats:
    """`x` `[m, k]` times the transposed weight `[n, k]`."""
    quants, scales = quantised_rows(x)
    sums = quants.sum(axis=2)
    scaled_sums = scales * sums.astype(np.float32)
    acc = np.zeros((len(x), len(blocks)), np.float32)
    for b in range(quants.shape[1]):
        scale, minimum, dots = _block(blocks, kind, b, quants[:, b])
        acc = _fma(scale[None] * scales[:, b, None], dots.astype(np.float32), acc)
        if minimum is not None:
            acc = _fma(np.broadcast_to(minimum, acc.shape), np.broadcast_to(scaled_sums[:, b, None], acc.shape), acc)
    return acc


def _fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """Rounded once but for sums of numbers more than 2^16 apart: extended precision holds 64 bits."""
    return (a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)).astype(np.float32)


def _halves(raw: npt.NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(raw).view(np.float16)[:, 0].astype(np.float32)


def _block(
    blocks: npt.NDArray[np.uint8], kind: str, b: int, quants: npt.NDArray[np.int64]
) -> tuple[Floats, Floats | None, npt.NDArray[np.int64]]:
    """W `[n]`, M `[n]` or None, and D `[m, n]` of block b."""
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    first, place = b * 32 // elements * size, b % (elements // 32)
    own = blocks[:, first : first + size]
    if kind == "q6_k":
        weights, sub_scales = _q6_k(own, place)
        halves = [quants[:, part] @ weights[:, part].T for part in (slice(0, 16), slice(16, 32))]
        return _halves(own[:, 208:210]), None, halves[0] * sub_scales[:, 0] + halves[1] * sub_scales[:, 1]
    if kind in ("q4_k", "q5_k"):
        scale, minimum, weights = _q4_k_or_q5_k(own, kind, place)
        return scale, minimum, quants @ weights.T
    if kind == "mxfp4":
        half = np.ldexp(np.float32(1), own[:, 0].astype(np.int32) - 128)
        return half, None, quants @ _HALVES_OF_FP4[_simple(own, kind)].T
    weights = _simple(own, kind) - _OFFSETS.get(kind, 0)
    minimum = _halves(own[:, 2:4]) if kind in ("q4_1", "q5_1") else None
    return _halves(own[:, :2]), minimum, quants @ weights.T


def _simple(own: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.int64]:
    if kind == "q8_0":
        return own[:, 2:].view(np.int8).astype(np.int64)
    nibbles = own[:, -16:]
    values = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.int64)
    if kind.startswith("q5"):
        bits = np.unpackbits(own[:, -20:-16], axis=1, bitorder="little")
        values += bits.astype(np.int64) << 4
    return values


def _q4_k_or_q5_k(own: npt.NDArray[np.uint8], kind: str, place: int) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    six = own[:, 4:16].astype(np.int64)
    if place < 4:
        scale, minimum = six[:, place] & 63, six[:, place + 4] & 63
    else:
        scale = (six[:, place + 4] & 15) | (six[:, place - 4] >> 6 << 4)
        minimum = (six[:, place + 4] >> 4) | (six[:, place] >> 6 << 4)
    start = (48 if kind == "q5_k" else 16) + place // 2 * 32
    pairs = own[:, start : start + 32].astype(np.int64)
    values = pairs >> 4 if place % 2 else pairs & 15
    if kind == "q5_k":
        values = values + ((own[:, 16:48].astype(np.int64) >> place & 1) << 4)
    factor = scale.astype(np.float32), minimum.astype(np.float32)
    return _halves(own[:, :2]) * factor[0], -_halves(own[:, 2:4]) * factor[1], values


def _q6_k(own: npt.NDArray[np.uint8], place: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    half, part = divmod(place, 4)
    nibbles = own[:, 64 * half + 32 * (part % 2) :][:, :32].astype(np.int64)
    pairs = own[:, 128 + 32 * half :][:, :32].astype(np.int64)
    values = (nibbles >> 4 if part >= 2 else nibbles & 15) | (pairs >> (2 * part) & 3) << 4
    return values - 32, own[:, 192 + 2 * place :][:, :2].view(np.int8).astype(np.int64)
