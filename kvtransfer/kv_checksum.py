"""The digest of blocks on a device, written down for the host: `csrc/cuda/kv_checksum.cu` gives the same 16 bytes.

A block is a row of 16-byte chunks of four 32-bit words. Two sums of products, NH of UMAC (Black et al., CRYPTO '99)
with keys that depend on the chunk's place, so that chunks that changed places are seen. Sums are of integers modulo
2^64: exact in any order, which lets a GPU take any. A flipped bit, a lost or a moved chunk passes with a probability of
about 2^-64. Made against accidents; it is no protection against someone who chooses the bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 16
_LANES = (
    ((0, 1, 0x9E3779B9, 0x85EBCA6B), (2, 3, 0xC2B2AE35, 0x27D4EB2F)),
    ((0, 2, 0x165667B1, 0xD3A2646C), (1, 3, 0xFD7046C5, 0xB55A4F09)),
)
"""Of each 64-bit sum: which words are multiplied, and what their keys are mixed with."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class BlockRows:
    """A block as rows of tokens, of every span (layer, plane, head) one after another."""

    row_bytes: int
    """A multiple of 16."""
    block_tokens: int


def checksum(block: bytes | memoryview, rows: BlockRows | None = None, tokens: int = 0) -> bytes:
    """16 bytes over `block`, whose size is a multiple of 16; with `rows`, over those of its first `tokens` tokens.

    What a block that is not full holds behind its last token is nobody's: a peer that was sent its rows one by one
    has something else there.
    """
    words = np.frombuffer(block, dtype="<u4").reshape(-1, 4)
    low, high = _place_keys(len(words))
    counts = np.ones(len(words), dtype=bool)
    if rows is not None:
        counts = np.arange(len(words)) // (rows.row_bytes // CHUNK_BYTES) % rows.block_tokens < tokens
    sums = []
    for lane in _LANES:
        total = 0
        for first, second, one, other in lane:
            left = words[:, first] + (low ^ np.uint32(one))
            right = words[:, second] + (high ^ np.uint32(other))
            products = left.astype(np.uint64) * right.astype(np.uint64)
            total += int(np.add.reduce(products[counts], dtype=np.uint64))
        sums.append(_finished((total + len(words)) & _MASK))
    return struct.pack("<QQ", *sums)


def _place_keys(chunks: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Two 32-bit keys a place: MurmurHash3's finaliser of its index, and a step of an odd multiplier from that."""
    low = np.arange(1, chunks + 1, dtype=np.uint32)
    low ^= low >> np.uint32(16)
    low *= np.uint32(0x85EBCA6B)
    low ^= low >> np.uint32(13)
    low *= np.uint32(0xC2B2AE35)
    low ^= low >> np.uint32(16)
    high = low * np.uint32(0x9E3779B1) + np.uint32(0x7F4A7C15)
    return low, high ^ (high >> np.uint32(15))


def _finished(x: int) -> int:
    """The finaliser of splitmix64: one to one, every bit reaches all."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
