"""Makes the block copies a plan asks for."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from engine.block_copy import BlockCopy


class BlockMover:
    """Copies blocks within `kv_cache` `[num_blocks, ...]`."""

    def __init__(self, kv_cache: torch.Tensor) -> None:
        self._kv_cache = kv_cache

    def run(self, copies: Iterable[BlockCopy]) -> None:
        """Makes the copies one after another; returns when all are made."""
        for copy in copies:
            self._kv_cache[copy.dest].copy_(self._kv_cache[copy.source])
