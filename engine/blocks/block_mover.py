"""Makes the block copies a plan asks for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from engine.blocks.block_copy import BlockCopy, CopyKind
from engine.blocks.kv_cache import KVCache


class BlockMover:
    """Copies blocks within `kv_cache`, and between it and `num_host_blocks` of its own."""

    def __init__(self, kv_cache: KVCache, num_host_blocks: int) -> None:
        self._blocks = kv_cache.blocks
        self._host = np.empty((num_host_blocks, kv_cache.layout.block_bytes), dtype=np.uint8)

    def run(self, copies: Iterable[BlockCopy]) -> None:
        """Makes the copies one after another; returns when all are made."""
        for copy in copies:
            source = self._host if copy.kind is CopyKind.IN else self._blocks
            dest = self._host if copy.kind is CopyKind.OUT else self._blocks
            dest[copy.dest] = source[copy.source]
