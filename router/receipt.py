"""How a request travelled: measured figures only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from router.lifecycle import RequestLifecycle


@dataclass(slots=True)
class Timings:
    """When tokens were released, on the router's monotonic clock; seconds."""

    received_s: float
    first_token_s: float | None = None
    last_token_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)

    def on_tokens(self, count: int, now_s: float) -> float | None:
        """Records `count` tokens released together; returns the gap before the first of them, None for the very first.

        There is no gap between tokens of one release.
        """
        gap_s = None if self.last_token_s is None else now_s - self.last_token_s
        if gap_s is None:
            self.first_token_s = now_s
        else:
            self.gaps_s.append(gap_s)
        self.last_token_s = now_s
        if count > 1:
            self.gaps_s.extend([0.0] * (count - 1))
        return gap_s

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.received_s if self.first_token_s is not None else 0.0


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Same fields as the wire message `splice.v1.Receipt`; see there."""

    prefill_worker: str
    decode_worker: str
    transport: str
    kv_bytes: int
    kv_blocks: int
    copy_s: float
    exposed_s: float
    transport_fallbacks: int
    blocks_refetched: int
    attempts: int
    ttft_s: float
    itl_p50_s: float
    itl_p95_s: float
    queue_s: float
    seed: int

    @classmethod
    def of(cls, lifecycle: RequestLifecycle, timings: Timings, seed: int) -> Receipt:
        handoff = lifecycle.handoff
        gaps = sorted(timings.gaps_s)
        return cls(
            prefill_worker=lifecycle.prefill[0] if lifecycle.prefill is not None else "",
            decode_worker=lifecycle.decode[0] if lifecycle.decode is not None else "",
            transport=handoff.transport,
            kv_bytes=handoff.kv_bytes,
            kv_blocks=handoff.kv_blocks,
            copy_s=handoff.copy_s,
            exposed_s=handoff.exposed_s,
            transport_fallbacks=handoff.transport_fallbacks,
            blocks_refetched=handoff.blocks_refetched,
            attempts=lifecycle.failures + 1,
            ttft_s=timings.ttft_s,
            itl_p50_s=_percentile(gaps, 0.50),
            itl_p95_s=_percentile(gaps, 0.95),
            queue_s=lifecycle.queue_s,
            seed=seed,
        )


def _percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank; 0 when there is nothing to rank."""
    if not ordered:
        return 0.0
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
