"""From raw samples to the figures people quote."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from splice.bench.sample import RequestSample
from splice.bench.statistics import percentile
from splice.bench.workload import Slo

RANKS = (50, 90, 95, 99)


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Of one repeat. Latencies are of complete requests only; `failed` says how many were not."""

    completed: int
    failed: int
    wall_s: float
    output_tokens_per_s: float
    """Output tokens of complete requests over the wall time, beginning and end of the run included."""
    prompt_tokens_per_s: float
    requests_per_s: float
    ttft_ms: Distribution | None
    """Due time to the first piece of text."""
    tpot_ms: Distribution | None
    """Per request: first to last piece, divided by the tokens after the first."""
    itl_ms: Distribution | None
    """Every gap between pieces of every request: what a reader sees. A mean hides stalls, its p95 does not."""
    e2e_ms: Distribution | None
    cached_share: float
    """Of the prompt tokens, those the server says it did not compute."""
    pieces_per_token: float
    """1 if each token came by itself; below, the server bundles tokens (or text of several tokens is one character)."""
    max_send_lag_ms: float
    """Longest time a due request waited inside the client. Large values: the client, not the server, was measured."""
    good: int
    """Complete requests that met the limits of the workload."""
    goodput_per_s: float
    goodput_share: float
    """Of all requests sent."""


def summarise(samples: Sequence[RequestSample], wall_s: float, slo: Slo) -> Summary:
    complete = [sample for sample in samples if sample.error is None]
    seconds = wall_s if wall_s > 0 else float("inf")
    output, prompt = sum(s.output_tokens for s in complete), sum(s.prompt_tokens for s in complete)
    good = sum(1 for sample in complete if meets(sample, slo))
    pieces = sum(len(s.gaps_us) + (s.first_us is not None) for s in complete)
    return Summary(
        completed=len(complete),
        failed=len(samples) - len(complete),
        wall_s=wall_s,
        output_tokens_per_s=output / seconds,
        prompt_tokens_per_s=prompt / seconds,
        requests_per_s=len(complete) / seconds,
        ttft_ms=distribution([s.first_us for s in complete if s.first_us is not None]),
        tpot_ms=distribution([s.tpot_us for s in complete if s.tpot_us is not None]),
        itl_ms=distribution([gap for s in complete for gap in s.gaps_us]),
        e2e_ms=distribution([s.end_us for s in complete]),
        cached_share=sum(s.cached_tokens for s in complete) / prompt if prompt else 0.0,
        pieces_per_token=pieces / output if output else 0.0,
        max_send_lag_ms=max((s.sent_us for s in samples), default=0) / 1000.0,
        good=good,
        goodput_per_s=good / seconds,
        goodput_share=good / len(samples) if samples else 0.0,
    )


def meets(sample: RequestSample, slo: Slo) -> bool:
    """Whether a complete request kept every limit that is given."""
    limits = (
        (slo.ttft_ms, sample.first_us),
        (slo.tpot_ms, sample.tpot_us),
        (slo.max_gap_ms, max(sample.gaps_us, default=0)),
        (slo.e2e_ms, sample.end_us),
    )
    return all(limit is None or taken is None or taken <= limit * 1000.0 for limit, taken in limits)


def distribution(times_us: Sequence[float]) -> Distribution | None:
    """Microseconds in, milliseconds out; None of nothing."""
    if not times_us:
        return None
    ranked = {f"p{rank}": (percentile(times_us, rank) or 0.0) / 1000.0 for rank in RANKS}
    return Distribution(mean=sum(times_us) / len(times_us) / 1000.0, max=max(times_us) / 1000.0, **ranked)
