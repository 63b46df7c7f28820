"""Blocks from a source into the local pool, and whether each is what its owner sealed."""

from __future__ import annotations

from collections.abc import Sequence

from kvtransfer.faults import FLIP_BYTE, FLIP_BYTE_UNCHECKED, FaultPlan, flip_bit
from kvtransfer.fetch import CopyOutcome
from kvtransfer.links import Links
from kvtransfer.pool import KVPool
from kvtransfer.transport import BlockRead


def copy_and_check(
    links: Links, reads: Sequence[BlockRead], digests: Sequence[bytes], pool: KVPool, faults: FaultPlan
) -> list[CopyOutcome]:
    """VERIFIED, STALE or DAMAGED, block by block; raises TransportError where nothing arrived."""
    faults.stall()
    seen = links.read(reads, pool)
    fresh = [read.dest_block for read, generation in zip(reads, seen, strict=True) if generation == read.generation]
    unchecked: set[int] = set()
    for block in fresh:
        if faults.fires(FLIP_BYTE_UNCHECKED):
            _damage(pool, block)
            unchecked.add(block)
        elif faults.fires(FLIP_BYTE):
            _damage(pool, block)
    found = dict(zip(fresh, pool.digests(fresh), strict=True))
    outcomes = []
    for read, digest in zip(reads, digests, strict=True):
        if read.dest_block not in found:
            outcomes.append(CopyOutcome.STALE)
        elif found[read.dest_block] == digest or read.dest_block in unchecked:
            outcomes.append(CopyOutcome.VERIFIED)
        else:
            outcomes.append(CopyOutcome.DAMAGED)
    return outcomes


def _damage(pool: KVPool, block: int) -> None:
    layout = pool.layout
    item_bytes = layout.layer_bytes // (2 * layout.num_kv_heads * layout.block_tokens * layout.head_dim)
    with pool.lent(block) as held:
        damaged = bytearray(held)
    flip_bit(memoryview(damaged), layout.layer_bytes, item_bytes)
    with pool.filling(block) as dest:
        dest[:] = damaged
