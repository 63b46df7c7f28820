"""Another worker's KV pool, mapped read-only."""

from __future__ import annotations

import fcntl
import mmap
import os

from kvtransfer import _native
from kvtransfer.pool_header import GENERATION_BYTES, PAGE_BYTES, PoolHeader, decode_header
from kvtransfer.transport import PeerPool, TransportError
from wire.errors import SpliceError


class PeerMap:
    """Believes nothing before it has been compared: size, seal, header, layout, incarnation."""

    def __init__(self, fd: int, expected: PeerPool) -> None:
        """Maps the pool behind `fd`, which stays the caller's to close; raises TransportError if it is another."""
        size = os.fstat(fd).st_size
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError:
            sealed = 0
        if not sealed or size < PAGE_BYTES:
            raise TransportError("the descriptor received is not a KV pool of fixed size")
        mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        try:
            header = decode_header(mapping[:PAGE_BYTES])
        except SpliceError as error:
            raise TransportError(error.message) from error
        wanted = PoolHeader(expected.layout_id, expected.incarnation, expected.num_blocks, expected.block_bytes)
        if header != wanted or size < header.total_bytes:
            raise TransportError(f"the pool mapped is {header} in {size} bytes, expected {wanted}")
        whole = memoryview(mapping)
        table_end = header.generations_offset + header.num_blocks * GENERATION_BYTES
        self._generations = whole[header.generations_offset : table_end]
        self._data = whole[header.data_offset : header.total_bytes]
        self._header = header

    def read(self, block: int, generation: int, dest: memoryview) -> int:
        """One copy, straight from the peer's block into `dest`; returns the generation seen after it."""
        if not 0 <= block < self._header.num_blocks:
            raise TransportError(f"block {block} is outside the source's pool of {self._header.num_blocks}")
        size = self._header.block_bytes
        return _native.copy_granted(
            dest, self._data[block * size : (block + 1) * size], self._generations, block, generation
        )
