"""The first page of a KV pool: what a peer checks before it believes a byte of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from wire.errors import ErrorCode, SpliceError

PAGE_BYTES = 4096
GENERATION_BYTES = 8
_MAGIC = b"SPLICEKV"
_VERSION = 1
_FORMAT = struct.Struct("<8sQQQQ16s")


@dataclass(frozen=True, slots=True)
class PoolHeader:
    """The first page; generations follow on the second, blocks on the first page after those."""

    layout_id: str
    incarnation: int
    num_blocks: int
    block_bytes: int

    @property
    def generations_offset(self) -> int:
        return PAGE_BYTES

    @property
    def data_offset(self) -> int:
        end = self.generations_offset + self.num_blocks * GENERATION_BYTES
        return -(-end // PAGE_BYTES) * PAGE_BYTES

    @property
    def total_bytes(self) -> int:
        return self.data_offset + self.num_blocks * self.block_bytes

    def encode(self) -> bytes:
        return _FORMAT.pack(
            _MAGIC, _VERSION, self.incarnation, self.num_blocks, self.block_bytes, bytes.fromhex(self.layout_id)
        )


def decode_header(raw: bytes | memoryview) -> PoolHeader:
    """Inverse of `PoolHeader.encode`; raises SpliceError(KV_TRANSFER_FAILED) on anything that is not a pool."""
    if len(raw) < _FORMAT.size:
        raise SpliceError(ErrorCode.KV_TRANSFER_FAILED, f"a KV pool header has {_FORMAT.size} bytes, got {len(raw)}")
    magic, version, incarnation, num_blocks, block_bytes, layout = _FORMAT.unpack_from(raw)
    if magic != _MAGIC or version != _VERSION:
        raise SpliceError(
            ErrorCode.KV_TRANSFER_FAILED,
            f"not a KV pool of version {_VERSION} (magic {magic!r}, version {version}); run one release on both sides",
        )
    return PoolHeader(layout.hex(), incarnation, num_blocks, block_bytes)
