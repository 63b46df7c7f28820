"""A worker's KV blocks in device memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.blocks.block_copy import BlockCopy, CopyKind
from wire.kv_layout import KVLayout

_PIECE_BYTES = 1 << 30
"""Of pinned memory: torch takes the next power of two of what it is asked for, which of all blocks at once could be
nearly twice as much."""


@dataclass(frozen=True, slots=True)
class DeviceKVCache:
    """See `KVMemory`."""

    layout: KVLayout
    blocks: torch.Tensor
    """uint8 `[num_blocks, layout.block_bytes]`, contiguous, on the device; its owner keeps the memory alive."""

    def __post_init__(self) -> None:
        if self.blocks.ndim != 2 or self.blocks.shape[1] != self.layout.block_bytes:
            raise ValueError(
                f"KV blocks {tuple(self.blocks.shape)}, expected [num_blocks, {self.layout.block_bytes}] bytes"
            )

    @classmethod
    def zeros(cls, layout: KVLayout, num_blocks: int, device: torch.device) -> DeviceKVCache:
        """In memory of its own."""
        return cls(layout, torch.zeros(num_blocks, layout.block_bytes, dtype=torch.uint8, device=device))

    def __len__(self) -> int:
        return len(self.blocks)

    def elements(self) -> torch.Tensor:
        """The same memory as `[num_blocks, *layout.block_shape]`."""
        return self.blocks.view(getattr(torch, self.layout.dtype)).view(len(self.blocks), *self.layout.block_shape)

    def mover(self, num_host_blocks: int) -> DeviceBlockMover:
        """See `KVMemory.mover`."""
        return DeviceBlockMover(self, num_host_blocks)


class DeviceBlockMover:
    """Copies blocks within the cache, and between it and `num_host_blocks` of pinned memory. Copies are queued in the
    order of the steps: what follows them on the device sees them done."""

    def __init__(self, kv_cache: DeviceKVCache, num_host_blocks: int) -> None:
        self._blocks = kv_cache.blocks
        pinned, block_bytes = kv_cache.blocks.device.type == "cuda", kv_cache.layout.block_bytes
        self._each = max(1, _PIECE_BYTES // block_bytes)
        self._host = [
            torch.empty((min(self._each, num_host_blocks - first), block_bytes), dtype=torch.uint8, pin_memory=pinned)
            for first in range(0, num_host_blocks, self._each)
        ]

    def run(self, copies: Iterable[BlockCopy]) -> None:
        """Queues the copies one after another."""
        for copy in copies:
            source = self._on_host(copy.source) if copy.kind is CopyKind.IN else self._blocks[copy.source]
            dest = self._on_host(copy.dest) if copy.kind is CopyKind.OUT else self._blocks[copy.dest]
            dest.copy_(source, non_blocking=True)

    def _on_host(self, block: int) -> torch.Tensor:
        return self._host[block // self._each][block % self._each]
