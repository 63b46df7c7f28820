"""What source, consumer and transports ask of a KV pool, wherever its blocks lie."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from wire.kv_layout import KVLayout


class Seal(Protocol):
    """Digests under way."""

    @property
    def is_ready(self) -> bool:
        """Whether `digests` returns without waiting for a device."""

    def digests(self) -> tuple[bytes, ...]:
        """16 bytes a block. Once."""


class KVPool(Protocol):
    """`num_blocks` blocks of `layout`, and a 64-bit generation each in host memory that peers map.

    The owner bumps a block's generation *before* it writes new content. Thread-safe.
    """

    layout: KVLayout
    num_blocks: int
    incarnation: int
    batch_blocks: int
    """Blocks that one copy thread takes together, where as many wait."""

    def bump(self, block: int) -> int:
        """A new generation, visible to every reader before anything written after this call."""

    def get(self, block: int) -> int:
        """The generation as it is."""

    def seal(self, blocks: Sequence[int], written: int | None, tokens: Sequence[int] | None = None) -> Seal:
        """`digests` once the device's event `written` is done; None where the host wrote them, and has."""

    def digests(self, blocks: Sequence[int], tokens: Sequence[int] | None = None) -> tuple[bytes, ...]:
        """16 bytes a block, of what they hold now.

        A pool on a device leaves out what lies behind the first `tokens[i]` tokens of a block, which may have been
        pushed, row by row. In host memory nothing is pushed, and whole blocks are looked at.
        """

    def lent(self, block: int) -> AbstractContextManager[memoryview]:
        """The block's bytes in host memory, to be read; of a device's block, a copy."""

    def filling(self, block: int) -> AbstractContextManager[memoryview]:
        """Host memory for a block's new bytes: they are in the block once this is left, also by an exception."""

    def close(self) -> None: ...
