"""What became findable in a prefix cache and what no longer is, for whoever keeps an index of it elsewhere."""

from __future__ import annotations

from collections import deque
from enum import Enum

import msgspec

from engine.blocks.cached_block import CachedBlock, Tier


class KvEventKind(Enum):
    STORED = "stored"
    """A full block can be found, or has moved to another tier."""
    REMOVED = "removed"


class KvEvent(msgspec.Struct, frozen=True):
    """One change. A reader that has applied all up to `seq` knows exactly what can be found."""

    seq: int
    """1, 2, 3 … since start."""
    kind: KvEventKind
    name: bytes
    """Chained hash of the block, 16 bytes."""
    parent: bytes
    tier: Tier


class KvSnapshot(msgspec.Struct, frozen=True):
    """Everything that can be found after event `seq`: where a reader begins, or begins again."""

    seq: int
    blocks: tuple[tuple[bytes, bytes, Tier], ...]
    """(name, parent, tier) of every full block."""


class KvEventLog:
    """The last `capacity` events, numbered."""

    def __init__(self, capacity: int) -> None:
        self._events: deque[KvEvent] = deque(maxlen=capacity)
        self.seq = 0
        """Of the last event; 0 before the first."""

    def add(self, kind: KvEventKind, entry: CachedBlock) -> None:
        """Records a change to a full block; changes to others concern nobody else."""
        content = entry.content
        if content.is_full:
            self.seq += 1
            self._events.append(KvEvent(self.seq, kind, content.name, content.parent, entry.tier))

    def since(self, seq: int) -> list[KvEvent] | None:
        """The events after `seq`, in order; None if some of them are forgotten and a snapshot is needed."""
        missing = self.seq - seq
        if not 0 <= missing <= len(self._events):
            return None
        return list(self._events)[len(self._events) - missing :]
