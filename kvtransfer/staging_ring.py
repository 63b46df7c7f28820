"""Pinned host memory that two processes share: what one device writes there, another reads."""

from __future__ import annotations

import fcntl
import mmap
import os

from kvtransfer.device_runtime import DeviceError, DeviceRuntime, Pinned
from kvtransfer.transport import TransportError

_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class StagingRing:
    """Two halves of `half_blocks` slots of `block_bytes` each in a memfd, mapped and registered with our driver.

    It belongs to one pair of threads in two processes, and is gone with the last of them: it has no name. Both map it
    writable, since drivers refuse to register what is not; nothing but blocks on their way to this peer is in it.
    """

    def __init__(self, runtime: DeviceRuntime, fd: int, half_blocks: int, block_bytes: int) -> None:
        """Maps what is behind `fd`, which stays the caller's to close; raises TransportError where that cannot be."""
        size = _ring_bytes(half_blocks, block_bytes)
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _FIXED == _FIXED
        except OSError:
            sealed = False
        if not sealed or os.fstat(fd).st_size != size:
            raise TransportError(f"the descriptor received is not a ring of {size} bytes, of fixed size")
        self.half_blocks = half_blocks
        self.block_bytes = block_bytes
        self._runtime = runtime
        try:
            mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            self._pinned: Pinned | None = runtime.pin(mapping)
        except (OSError, DeviceError) as error:
            raise TransportError(f"{size} bytes of shared memory cannot be pinned: {error}") from error

    def places(self, half: int, count: int) -> list[int]:
        """Where the device finds the first `count` slots of a half; raises TransportError beyond it."""
        if self._pinned is None or half not in (0, 1) or not 0 <= count <= self.half_blocks:
            raise TransportError(f"{count} slots of half {half} of a ring with {self.half_blocks} a half")
        first = self._pinned.address + half * self.half_blocks * self.block_bytes
        return [first + slot * self.block_bytes for slot in range(count)]

    def close(self) -> None:
        """When nothing of ours runs on it any more: unregistered, and unmapped. Raises DeviceError."""
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            self._runtime.unpin(pinned)


def new_ring(half_blocks: int, block_bytes: int) -> int:
    """Descriptor of a ring's memory, reserved whole and of fixed size; raises OSError."""
    fd = os.memfd_create("splice-kv-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, _ring_bytes(half_blocks, block_bytes))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED)
    except OSError:
        os.close(fd)
        raise
    return fd


def _ring_bytes(half_blocks: int, block_bytes: int) -> int:
    return -(-2 * half_blocks * block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
