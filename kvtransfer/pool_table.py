"""Header and generations of a pool whose blocks lie elsewhere: a memfd that peers map read-only."""

from __future__ import annotations

import fcntl
import mmap
import os

from kvtransfer import _native
from kvtransfer.memfd_seals import seal_size
from kvtransfer.pool_header import GENERATION_BYTES, PAGE_BYTES, PoolHeader, decode_header
from kvtransfer.transport import PeerPool, TransportError
from wire.errors import ErrorCode, SpliceError


class PoolTable:
    """The owner's. As in a pool of host memory, up to where the blocks would begin."""

    def __init__(self, header: PoolHeader) -> None:
        """All generations 0; raises SpliceError(BAD_SETTING) if the memory cannot be had."""
        self.fd = os.memfd_create("splice-kv-table", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.fd, 0, header.data_offset)
            mapping = mmap.mmap(self.fd, header.data_offset, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            mapping[: len(header.encode())] = header.encode()
            seal_size(self.fd)
        except OSError as error:
            os.close(self.fd)
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"cannot reserve {header.data_offset} bytes for generations: {error.strerror}; use fewer blocks",
                param="num_blocks",
            ) from error
        self._whole = memoryview(mapping)
        self._generations = _generations(self._whole, header)

    def whole(self) -> memoryview:
        """Header and generations, as `PoolHeader` lays them out."""
        return self._whole

    def bump(self, block: int) -> int:
        return _native.bump_generation(self._generations, block)

    def get(self, block: int) -> int:
        return _native.load_generation(self._generations, block)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._whole = self._generations = memoryview(b"")


class PeerTable:
    """Another worker's, mapped read-only; believes nothing before it has been compared."""

    def __init__(self, fd: int, expected: PeerPool) -> None:
        """Maps what is behind `fd`, the caller's to close; raises TransportError if it is another pool's."""
        wanted = PoolHeader(expected.layout_id, expected.incarnation, expected.num_blocks, expected.block_bytes)
        size = os.fstat(fd).st_size
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError:
            sealed = 0
        if not sealed or size != wanted.data_offset:
            raise TransportError(
                f"not the table of a KV pool: {size} bytes, expected {wanted.data_offset} of fixed size"
            )
        mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        try:
            header = decode_header(mapping[:PAGE_BYTES])
        except SpliceError as error:
            raise TransportError(error.message) from error
        if header != wanted:
            raise TransportError(f"the pool mapped is {header}, expected {wanted}")
        self._generations = _generations(memoryview(mapping), wanted)

    def seen(self, block: int, granted: int) -> int:
        """The generation, loaded behind a fence: nothing this thread saw before is younger than it."""
        # Of no bytes, this is the load, the fence and the second load that a copy from a mapped pool ends in.
        return _native.copy_granted(bytearray(), b"", self._generations, block, granted)


def _generations(whole: memoryview, header: PoolHeader) -> memoryview:
    return whole[header.generations_offset :][: header.num_blocks * GENERATION_BYTES]
