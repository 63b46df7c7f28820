"""One block from a source into the local pool, and whether it is what its owner sealed."""

from __future__ import annotations

import xxhash

from kvtransfer.faults import FLIP_BYTE, FLIP_BYTE_UNCHECKED, FaultPlan, flip_bit
from kvtransfer.fetch import CopyOutcome, StartCopy
from kvtransfer.handoff import RequestKey
from kvtransfer.links import Links
from kvtransfer.pool_memory import KVPoolMemory


def copy_and_check(
    links: Links, key: RequestKey, copy: StartCopy, pool: KVPoolMemory, dest_block: int, faults: FaultPlan
) -> CopyOutcome:
    """VERIFIED, STALE or DAMAGED; raises TransportError where nothing arrived."""
    faults.stall()
    dest, layout = pool.block(dest_block), pool.layout
    if links.read(key, copy.source_block, copy.generation, dest) != copy.generation:
        return CopyOutcome.STALE
    item_bytes = layout.layer_bytes // (2 * layout.num_kv_heads * layout.block_tokens * layout.head_dim)
    if faults.fires(FLIP_BYTE_UNCHECKED):
        flip_bit(dest, layout.layer_bytes, item_bytes)
        return CopyOutcome.VERIFIED
    if faults.fires(FLIP_BYTE):
        flip_bit(dest, layout.layer_bytes, item_bytes)
    return CopyOutcome.VERIFIED if xxhash.xxh3_128_digest(dest) == copy.digest else CopyOutcome.DAMAGED
