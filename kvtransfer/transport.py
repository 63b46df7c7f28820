"""The contract every KV transport keeps, on the source's side and on the consumer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kvtransfer.handoff import RequestKey
from kvtransfer.pool import KVPool

OPEN_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0
"""For one block, from request to last byte: longer means that the peer or the path is gone."""
CAPABILITY_BYTES = 16


class TransportError(Exception):
    """A transport could not be opened, or broke during a copy: the next one offered may work."""


class ReadGate(Protocol):
    """Asked by transports whose source side takes part in a copy: pins what is being sent. Thread-safe."""

    def begin_read(self, key: RequestKey, block: int, generation: int) -> bool: ...
    def end_read(self, key: RequestKey) -> None: ...


class SourceTransport(Protocol):
    """Serves the blocks of one pool to peers that hold a capability."""

    def offer(self) -> tuple[bytes, bytes]:
        """(address to send to one consumer, the fresh random capability inside it)."""

    def revoke(self, capability: bytes) -> None:
        """Nobody presents this capability any more; connections made with it are closed."""

    def close(self) -> None:
        """Stops serving; returns when no thread of it touches the pool."""


class Link(Protocol):
    """A consumer's way to one source's pool. Blocking; called by several copy threads at once."""

    def read(self, key: RequestKey, block: int, generation: int, dest: memoryview) -> int:
        """Copies one block into `dest` and returns the generation seen after its last byte.

        Another value than `generation` means that `dest` holds nothing of worth. Raises TransportError; once this has
        returned or raised, nothing writes to `dest` any more.
        """

    def close(self) -> None:
        """Ends reads under way with TransportError, soon."""


@dataclass(frozen=True, slots=True)
class BlockRead:
    """One block to copy: which of the source's, as granted, and where to."""

    key: RequestKey
    block: int
    generation: int
    dest_block: int


@runtime_checkable
class DeviceLink(Protocol):
    """A way from one device's pool to another's, without host memory between. Blocking, as `Link`."""

    def read_blocks(self, reads: Sequence[BlockRead]) -> list[int]:
        """Copies the blocks into the local pool; the generation of each, as `Link.read` returns it.

        Raises TransportError; nothing writes to the destinations once this has returned or raised.
        """

    def close(self) -> None:
        """Reads under way end by themselves; none begins any more."""


SourceFactory = Callable[[KVPool, ReadGate, str], SourceTransport]
"""(pool, gate, host address to bind)"""
LinkFactory = Callable[[bytes, "PeerPool"], Link | DeviceLink]
"""(address as offered, what the pool behind it must be); raises TransportError."""


class PeerPool:
    """What the consumer knows about the pool it is going to read, from Hello."""

    __slots__ = ("block_bytes", "incarnation", "layout_id", "num_blocks")

    def __init__(self, layout_id: str, incarnation: int, num_blocks: int, block_bytes: int) -> None:
        self.layout_id = layout_id
        self.incarnation = incarnation
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
