"""Blocks that wait for a copy thread, source by source."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from kvtransfer.checked_copy import AnnouncedBlock
from kvtransfer.fetch import FetchMachine, StartCopy
from kvtransfer.handoff import RequestKey, SourceAddress
from kvtransfer.peer import Peer
from kvtransfer.transport import BlockRead


@dataclass(slots=True)
class Fetch:
    """One hand-off, and what its machine does not know."""

    machine: FetchMachine
    source: SourceAddress
    dest_blocks: Sequence[int]
    skip_blocks: int
    peer: Peer | None = None
    wants_push: bool | None = None
    """What was chosen for it, where there was a choice."""


@dataclass(frozen=True, slots=True)
class QueuedCopy:
    """One block that waits for a copy thread, or is on it."""

    key: RequestKey
    fetch: Fetch
    start: StartCopy

    def block(self) -> AnnouncedBlock:
        start = self.start
        read = BlockRead(self.key, start.source_block, start.generation, self.fetch.dest_blocks[start.index])
        return AnnouncedBlock(read, start.digest, start.in_place, start.tokens)


class CopyQueue:
    """First come, first served, of each source; not thread-safe."""

    def __init__(self, most: int) -> None:
        """`most` blocks are taken together."""
        self._most = most
        self._waiting: dict[Peer, deque[QueuedCopy]] = {}

    def add(self, peer: Peer, copy: QueuedCopy) -> None:
        self._waiting.setdefault(peer, deque()).append(copy)

    def take(self, peer: Peer) -> list[QueuedCopy]:
        """Empty if another thread took them."""
        waiting = self._waiting.get(peer)
        if waiting is None:
            return []
        copies = [waiting.popleft() for _ in range(min(len(waiting), self._most))]
        if not waiting:
            del self._waiting[peer]
        return copies
