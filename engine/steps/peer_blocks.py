"""Blocks of another worker's cache, mapped here, in which a request's rows are stored besides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class PeerBlocks:
    """Block i of a request is stored in the peer's `blocks[i - first_block]` too, from `first_block` on."""

    address: int
    """Of block 0 of a cache of the local one's form."""
    first_block: int
    blocks: tuple[int, ...]

    def from_block(self, index: int) -> PeerBlocks:
        """The part at and after block `index` of the request; may be empty."""
        cut = min(max(index - self.first_block, 0), len(self.blocks))
        return PeerBlocks(self.address, self.first_block + cut, self.blocks[cut:])

    def slots(self, start: int, length: int, block_tokens: int) -> npt.NDArray[np.int64]:
        """`[length]`: where the tokens from position `start` on go in the peer's cache; −1: they stay."""
        index, offset = np.divmod(np.arange(start, start + length, dtype=np.int64), block_tokens)
        at = index - self.first_block
        blocks = np.array((*self.blocks, 0), dtype=np.int64)
        slots: npt.NDArray[np.int64] = blocks[np.clip(at, 0, len(self.blocks))] * block_tokens + offset
        slots[(at < 0) | (at >= len(self.blocks))] = -1
        return slots
