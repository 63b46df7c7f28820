"""Blocks from a source into the local pool, and whether each is what its owner sealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtransfer.faults import FLIP_BYTE, FLIP_BYTE_UNCHECKED, FaultPlan, flip_bit
from kvtransfer.fetch import CopyOutcome
from kvtransfer.links import Links
from kvtransfer.pool import KVPool
from kvtransfer.transport import BlockRead


@dataclass(frozen=True, slots=True)
class AnnouncedBlock:
    """One block to have: where from and to, and what it must be."""

    read: BlockRead
    digest: bytes
    in_place: bool
    """It should be there already."""
    tokens: int
    """Of the request, in it."""


def copy_and_check(
    links: Links, blocks: Sequence[AnnouncedBlock], pool: KVPool, faults: FaultPlan
) -> list[CopyOutcome]:
    """VERIFIED, STALE or DAMAGED, and for those in place VERIFIED or ABSENT; raises TransportError where nothing
    arrived."""
    faults.stall()
    reads = [block.read for block in blocks if not block.in_place]
    seen = links.read(reads, pool) if reads else []
    fresh = [read.dest_block for read, generation in zip(reads, seen, strict=True) if generation == read.generation]
    unchecked: set[int] = set()
    for dest_block in fresh:
        if faults.fires(FLIP_BYTE_UNCHECKED):
            _damage(pool, dest_block)
            unchecked.add(dest_block)
        elif faults.fires(FLIP_BYTE):
            _damage(pool, dest_block)
    there = fresh + [block.read.dest_block for block in blocks if block.in_place]
    tokens = {block.read.dest_block: block.tokens for block in blocks}
    found = dict(zip(there, pool.digests(there, [tokens[block] for block in there]), strict=True))
    outcomes = []
    for block in blocks:
        dest_block = block.read.dest_block
        if dest_block not in found:
            outcomes.append(CopyOutcome.STALE)
        elif found[dest_block] == block.digest or dest_block in unchecked:
            outcomes.append(CopyOutcome.VERIFIED)
        else:
            outcomes.append(CopyOutcome.ABSENT if block.in_place else CopyOutcome.DAMAGED)
    return outcomes


def _damage(pool: KVPool, block: int) -> None:
    layout = pool.layout
    item_bytes = layout.layer_bytes // (2 * layout.num_kv_heads * layout.block_tokens * layout.head_dim)
    with pool.lent(block) as held:
        damaged = bytearray(held)
    flip_bit(memoryview(damaged), layout.layer_bytes, item_bytes)
    with pool.filling(block) as dest:
        dest[:] = damaged
