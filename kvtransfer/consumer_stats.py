"""What a consumer counts, of one hand-off and since its start."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtransfer.fetch import Ready
from kvtransfer.handoff import HandoffStats
from kvtransfer.links import Links


@dataclass(frozen=True, slots=True)
class ConsumerStats:
    """Totals since start."""

    handoffs: int = 0
    failures: int = 0
    kv_bytes_in: int = 0
    kv_blocks_in: int = 0
    blocks_refetched: int = 0
    blocks_pushed: int = 0
    digest_mismatches: int = 0
    transport_fallbacks: int = 0
    copies_outstanding: int = 0

    def counting(self, one: HandoffStats) -> ConsumerStats:
        """With one hand-off more."""
        return replace(
            self,
            handoffs=self.handoffs + 1,
            kv_bytes_in=self.kv_bytes_in + one.kv_bytes,
            kv_blocks_in=self.kv_blocks_in + one.kv_blocks,
            blocks_refetched=self.blocks_refetched + one.blocks_refetched,
            blocks_pushed=self.blocks_pushed + one.blocks_pushed,
            transport_fallbacks=self.transport_fallbacks + one.transport_fallbacks,
        )


def handoff_stats(links: Links | None, ready: Ready, block_bytes: int) -> HandoffStats:
    """`transport` is that of the blocks that had to be pulled; `push` if there were none."""
    transport = links.transport if links is not None and ready.kv_blocks else ""
    if ready.kv_blocks and ready.blocks_pushed == ready.kv_blocks:
        transport = "push"
    return HandoffStats(
        transport=transport,
        kv_bytes=ready.kv_blocks * block_bytes,
        kv_blocks=ready.kv_blocks,
        copy_s=ready.copy_s,
        exposed_s=ready.exposed_s,
        transport_fallbacks=links.fallbacks if links is not None else 0,
        blocks_refetched=ready.blocks_refetched,
        blocks_pushed=ready.blocks_pushed,
    )
