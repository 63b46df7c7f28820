"""What hand-offs ask of a GPU's driver. `cuda_runtime` is CUDA's; tests have one that checks the order of calls.

Addresses, streams and events are the driver's own numbers, so that those of torch or CuPy can be handed in. Device
memory is never read or written from the host: `copy` moves bytes between it and pinned memory.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Protocol

from kvtransfer.kv_checksum import BlockRows


class DeviceError(Exception):
    """The driver refused a call, or reports that earlier work failed. Names the call and the driver's own words."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Host memory that the device reaches at `address`."""

    address: int
    view: memoryview


class DeviceRuntime(Protocol):
    """One device. Thread-safe; every call raises DeviceError where the driver does not say yes."""

    @property
    def uuid(self) -> str:
        """Names the device to other processes: 32 hexadecimal digits."""

    @property
    def context(self) -> int:
        """The driver's name for what a thread enters; 0 if there is none to enter."""

    def enter(self) -> None:
        """Makes the device this thread's current one, for libraries that ask for that."""

    def free_bytes(self) -> int:
        """Device memory that can still be allocated."""

    def allocate(self, nbytes: int) -> int:
        """Device memory of an allocation of its own, not managed: its address."""

    def free(self, address: int) -> None:
        """Only when no work touches it and no peer maps it: a peer's copy would read what is gone."""

    def export(self, address: int) -> tuple[bytes, int]:
        """(handle by which another process on this host opens the allocation, offset of `address` within it)."""

    def open_export(self, handle: bytes) -> int:
        """The first address of another process's allocation. Once a handle, until it is closed."""

    def close_export(self, address: int) -> None:
        """Only when no work touches it. The owner's memory is not free before this, even if the owner has died."""

    def can_reach(self, uuid: str) -> bool:
        """False if that device is known here and its memory cannot be mapped."""

    def allocate_pinned(self, nbytes: int) -> Pinned: ...
    def free_pinned(self, memory: Pinned) -> None:
        """Only when no work touches it."""

    def pin(self, mapping: mmap.mmap) -> Pinned:
        """Lets the device reach memory that is mapped already, and shared perhaps; it stays mapped meanwhile."""

    def unpin(self, memory: Pinned) -> None:
        """Only when no work of this process touches it."""

    def new_stream(self) -> int: ...
    def end_stream(self, stream: int) -> None: ...
    def new_event(self) -> int: ...
    def end_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None:
        """The event is done when all that `stream` was given before is."""

    def is_done(self, event: int) -> bool:
        """Does not wait."""

    def wait(self, stream: int, event: int) -> None:
        """What `stream` is given from now on begins after the event; the host does not wait."""

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Between any two of: device memory, a peer's, pinned memory. Both stay until the stream has passed it."""

    def clear(self, address: int, nbytes: int, stream: int) -> None:
        """Zeros."""


class BlockKernels(Protocol):
    """What is launched on a stream over whole blocks. Arrays of ids are int64 at addresses the device reaches."""

    def copy_blocks(
        self, to: int, to_ids: int, source: int, source_ids: int, blocks: int, block_bytes: int, stream: int
    ) -> None:
        """Block `to_ids[i]` of the pool at `to` becomes a copy of block `source_ids[i]` of the one at `source`."""

    def checksum_workspace(self, blocks: int, block_bytes: int) -> int:
        """Bytes of device memory that `checksum` needs."""

    def checksum(
        self,
        sums: int,
        data: int,
        ids: int,
        blocks: int,
        block_bytes: int,
        workspace: int,
        stream: int,
        tokens: int = 0,
        rows: BlockRows | None = None,
    ) -> None:
        """`sums[i]`, 16 bytes, becomes `kv_checksum.checksum` of block `ids[i]` of the pool at `data`; with `rows`, of
        its first `tokens[i]` tokens."""
