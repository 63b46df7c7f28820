"""What the two sides of a hand-off say to each other, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wire.sampling import TokenLogprobs

RequestKey = tuple[int, int]
"""(request, attempt): never used twice."""

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who a worker is to its peers."""

    worker_id: str
    incarnation: int
    """Drawn when the process started; another one at the same address is another process."""
    compat_id: str
    """KV may pass only between equal ids (`wire.kv_layout.compat_id`)."""
    host_id: str
    """From `kvtransfer.host.host_id`; equal ids mean that shared memory can work."""


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """A prefill worker as the router names it to a decode worker."""

    worker_id: str
    incarnation: int
    endpoint: str
    """`host:port` of its gRPC server."""


@dataclass(frozen=True, slots=True)
class KvFinalData:
    """What decode needs beside the KV to go on as if it had computed the prompt itself."""

    first_tokens: tuple[int, ...]
    first_seq: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    finished: bool = False
    """The request ended on its first token: there is nothing to decode."""
    computed_tokens: int = 0
    """Of the prompt, those that were not found in a prefix cache."""
    excess_s: float = 0.0
    """Its share, by rows, of how much longer its steps took than steps of their size should."""


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Neighbouring blocks of one request that may be read; column i of each tuple belongs to one block."""

    first_block: int
    """Index within the request of the first block named."""
    block_ids: tuple[int, ...]
    """In the source's pool."""
    generations: tuple[int, ...]
    digests: tuple[bytes, ...]
    num_tokens: int
    """Tokens of the request whose KV is complete, counted from its start."""
    pushed: bool = False
    """The consumer's granted blocks should hold these already."""

    def tokens_of(self, index: int, block_tokens: int) -> int:
        """How many of block `index` of the request are complete."""
        return min(max(self.num_tokens - index * block_tokens, 0), block_tokens)

    def split(self, pushed_from: int | None) -> list[BlockRange]:
        """At block `pushed_from` of the request: those before it, and from it on those that are pushed; one part at
        least."""
        if pushed_from is None:
            return [self]
        there = replace(self.from_block(pushed_from), pushed=True)
        cut = len(self.block_ids) - len(there.block_ids)
        here = BlockRange(
            self.first_block, self.block_ids[:cut], self.generations[:cut], self.digests[:cut], self.num_tokens
        )
        return [part for part in (here, there) if part.block_ids] or [self]

    def from_block(self, index: int) -> BlockRange:
        """The part at and after block `index` of the request; may be empty."""
        cut = min(max(index - self.first_block, 0), len(self.block_ids))
        return BlockRange(
            self.first_block + cut,
            self.block_ids[cut:],
            self.generations[cut:],
            self.digests[cut:],
            self.num_tokens,
            self.pushed,
        )


@dataclass(frozen=True, slots=True)
class HandoffStats:
    """Figures of one finished hand-off."""

    transport: str
    kv_bytes: int
    kv_blocks: int
    copy_s: float
    """Time during which at least one block of the request was being copied or checked."""
    exposed_s: float
    """From the final announcement to ready: the part that prefill did not hide."""
    transport_fallbacks: int
    """Transports offered for this pair that were passed over because they failed or are unknown here."""
    blocks_refetched: int
    blocks_pushed: int = 0
    """Of `kv_blocks`: those that were there when they were announced."""
