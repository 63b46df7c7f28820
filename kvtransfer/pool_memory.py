"""A worker's KV pool in memory that peers can map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import xxhash

from kvtransfer import _native
from kvtransfer.memfd_seals import seal_size
from kvtransfer.pool_header import GENERATION_BYTES, PoolHeader
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import KVLayout


class _Sealed:
    """Digests that are there."""

    is_ready = True

    def __init__(self, digests: tuple[bytes, ...]) -> None:
        self._digests = digests

    def digests(self) -> tuple[bytes, ...]:
        return self._digests


class KVPoolMemory:
    """Header, one 64-bit generation per block, and `[num_blocks]` blocks of `layout`, in a memfd.

    The memory has no name: it is gone with the last process that maps it, however that process ends. It is reserved
    whole and its pages are mapped at creation (a pool too large for the machine fails here, and no step pays for page
    faults), never resized and never unmapped while a view of it lives. The owner bumps a block's generation *before* it
    writes new content; whoever wrote with non-temporal stores fences (`sfence`) before the block is announced.
    """

    batch_blocks = 1

    def __init__(self, layout: KVLayout, header: PoolHeader, fd: int, mapping: mmap.mmap) -> None:
        self.layout = layout
        self.num_blocks = header.num_blocks
        self.incarnation = header.incarnation
        self.fd = fd
        self._whole = whole = memoryview(mapping)[: header.total_bytes]
        generations_end = header.generations_offset + header.num_blocks * GENERATION_BYTES
        self._generations = whole[header.generations_offset : generations_end]
        self._data = whole[header.data_offset : header.total_bytes]
        self._block_bytes = layout.block_bytes

    @classmethod
    def create(cls, layout: KVLayout, num_blocks: int, incarnation: int, *, beside_bytes: int = 0) -> KVPoolMemory:
        """A zeroed pool with all generations 0; raises SpliceError(BAD_SETTING) if the machine cannot hold it.

        `beside_bytes` is what the caller is about to take besides. The interpreter goes on meanwhile: a large pool
        takes as long as reading a small model.
        """
        if num_blocks < 1:
            raise SpliceError(ErrorCode.BAD_SETTING, f"a KV pool needs ≥ 1 block, got {num_blocks}", param="num_blocks")
        header = PoolHeader(layout.layout_id, incarnation, num_blocks, layout.block_bytes)
        # The kernel would hand out pages until it has to kill somebody: a memfd has no size limit of its own.
        available = psutil.virtual_memory().available
        if header.total_bytes + beside_bytes > available:
            beside = f", {beside_bytes} of them for weights" if beside_bytes else ""
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"a KV pool of {num_blocks} blocks takes {header.total_bytes} bytes and {available} are available"
                f"{beside}; use fewer blocks or free memory",
                param="num_blocks",
            )
        fd = os.memfd_create("splice-kv-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, header.total_bytes)
            mapping = mmap.mmap(fd, header.total_bytes, flags=mmap.MAP_SHARED)
            _native.map_pages(mapping)
            mapping[: len(header.encode())] = header.encode()
            seal_size(fd)
        except OSError as error:
            os.close(fd)
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"cannot reserve a KV pool of {header.total_bytes} bytes ({num_blocks} blocks): {error.strerror}; "
                "use fewer blocks or free memory",
                param="num_blocks",
            ) from error
        return cls(layout, header, fd, mapping)

    def data(self) -> memoryview:
        """All blocks, writable, `num_blocks * layout.block_bytes` bytes."""
        return self._data

    def whole(self) -> memoryview:
        """Header, generations and blocks, as `PoolHeader` lays them out."""
        return self._whole

    def block(self, block: int) -> memoryview:
        """One block, writable; raises IndexError outside the pool."""
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} is outside a pool of {self.num_blocks}")
        return self._data[block * self._block_bytes : (block + 1) * self._block_bytes]

    def bump(self, block: int) -> int:
        """A new generation, visible to every reader before anything written after this call."""
        return _native.bump_generation(self._generations, block)

    def get(self, block: int) -> int:
        return _native.load_generation(self._generations, block)

    def digest(self, block: int) -> bytes:
        """xxh3-128 of the block's bytes, 16 bytes."""
        return xxhash.xxh3_128_digest(self.block(block))

    def digests(self, blocks: Sequence[int], tokens: Sequence[int] | None = None) -> tuple[bytes, ...]:
        return tuple(self.digest(block) for block in blocks)

    def seal(self, blocks: Sequence[int], written: int | None = None, tokens: Sequence[int] | None = None) -> _Sealed:
        if written is not None:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, "no device writes to a pool in host memory")
        return _Sealed(self.digests(blocks))

    @contextmanager
    def lent(self, block: int) -> Iterator[memoryview]:
        yield self.block(block)

    @contextmanager
    def filling(self, block: int) -> Iterator[memoryview]:
        yield self.block(block)

    def close(self) -> None:
        """Closes the descriptor and lets go of the memory; it is unmapped when the last view taken from it dies."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._whole = self._generations = self._data = memoryview(b"")
