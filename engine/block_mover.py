"""Makes the block copies a plan asks for."""

from __future__ import annotations

from collections.abc import Iterable

from engine.block_copy import BlockCopy
from engine.kv_cache import KVCache


class BlockMover:
    """Copies blocks within `kv_cache`."""

    def __init__(self, kv_cache: KVCache) -> None:
        self._blocks = kv_cache.blocks

    def run(self, copies: Iterable[BlockCopy]) -> None:
        """Makes the copies one after another; returns when all are made."""
        for copy in copies:
            self._blocks[copy.dest] = self._blocks[copy.source]
