"""The memory of a worker's KV blocks, as a model computes in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.blocks.block_mover import BlockMover, HostBlockMover
from wire.kv_layout import KVLayout

_ELEMENTS = {
    "float32": np.float32,
    "bfloat16": np.uint16,
    "float16": np.float16,
    "int8": np.int8,
    "fp8_e4m3": np.uint8,
}
"""numpy has no bfloat16 and no fp8: their bits stand in unsigned integers."""


class KVMemory(Protocol):
    """Blocks of one layout, one after another, wherever a model computes; `len` is their number."""

    @property
    def layout(self) -> KVLayout: ...

    def __len__(self) -> int: ...

    def mover(self, num_host_blocks: int) -> BlockMover:
        """Who copies its blocks, and keeps so many outside."""


@dataclass(frozen=True, slots=True)
class KVCache:
    """See `KVMemory`; in memory of the CPU."""

    layout: KVLayout
    blocks: npt.NDArray[np.uint8]
    """`[num_blocks, layout.block_bytes]`, contiguous, writable; its owner keeps the memory alive."""

    def __post_init__(self) -> None:
        if self.blocks.ndim != 2 or self.blocks.shape[1] != self.layout.block_bytes:
            raise ValueError(f"KV blocks {self.blocks.shape}, expected [num_blocks, {self.layout.block_bytes}] bytes")

    @classmethod
    def over(cls, layout: KVLayout, memory: memoryview) -> KVCache:
        """Over memory that holds a whole number of blocks."""
        return cls(layout, np.frombuffer(memory, dtype=np.uint8).reshape(-1, layout.block_bytes))

    @classmethod
    def zeros(cls, layout: KVLayout, num_blocks: int) -> KVCache:
        """In memory of its own."""
        return cls(layout, np.zeros((num_blocks, layout.block_bytes), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.blocks)

    def mover(self, num_host_blocks: int) -> HostBlockMover:
        """See `KVMemory.mover`."""
        return HostBlockMover(self.blocks, num_host_blocks)

    def elements(self) -> npt.NDArray[np.generic]:
        """The same memory as `[num_blocks, *layout.block_shape]`; bfloat16 as uint16. Of types of 8 bits, whose numbers
        and scales take turns, `[num_blocks, num_layers, planes, num_kv_heads, layout.plane_bytes]`: int8, or uint8 for
        fp8_e4m3."""
        elements = self.blocks.view(_ELEMENTS[self.layout.dtype])
        if self.layout.is_scaled:
            layers, planes, heads, _, _ = self.layout.block_shape
            return elements.reshape(len(self.blocks), layers, planes, heads, self.layout.plane_bytes)
        return elements.reshape(len(self.blocks), *self.layout.block_shape)
