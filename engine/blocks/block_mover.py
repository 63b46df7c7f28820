"""Makes the block copies a plan asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.blocks.block_copy import BlockCopy, CopyKind


class BlockMover(Protocol):
    """Copies blocks within a cache, and between it and blocks outside that keep what is evicted from it."""

    def run(self, copies: Iterable[BlockCopy]) -> None:
        """Makes the copies one after another; whatever is computed from now on sees them made."""


class HostBlockMover:
    """See `BlockMover`; `blocks` `[num_blocks, block_bytes]` uint8, and `num_host_blocks` of its own."""

    def __init__(self, blocks: npt.NDArray[np.uint8], num_host_blocks: int) -> None:
        self._blocks = blocks
        self._host = np.empty((num_host_blocks, blocks.shape[1]), dtype=np.uint8)

    def run(self, copies: Iterable[BlockCopy]) -> None:
        """See `BlockMover.run`."""
        for copy in copies:
            source = self._host if copy.kind is CopyKind.IN else self._blocks
            dest = self._host if copy.kind is CopyKind.OUT else self._blocks
            dest[copy.dest] = source[copy.source]
