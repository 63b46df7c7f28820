"""Tokens released and the gaps between them: the two metrics that count once a token.

prometheus_client takes a lock and a few calls for each; here a token costs two additions, and the text is made when
somebody asks for it. Lives on the router's event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

GAP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper ends of the buckets, inclusive."""


@dataclass(slots=True)
class _Pace:
    tokens: int = 0
    gaps: list[int] = field(default_factory=lambda: [0] * (len(GAP_S) + 1))
    """By bucket; the last is for longer ones."""
    gaps_s: float = 0.0
    """Their sum."""


class TokenPace(Collector):
    """`splice:generation_tokens` and `splice:inter_token_latency_seconds`, by model."""

    def __init__(self) -> None:
        self._models: dict[str, _Pace] = {}

    def on_tokens(self, model: str, count: int, gap_s: float | None) -> None:
        """`count` tokens came at once, `gap_s` after the one before them; None when there was none."""
        pace = self._of(model)
        pace.tokens += count
        if gap_s is not None:
            pace.gaps[bisect_left(GAP_S, gap_s)] += 1
            pace.gaps_s += gap_s
        pace.gaps[0] += count - 1

    def on_answer(self, model: str, count: int) -> None:
        """`count` tokens came with the whole answer, as a beam search gives it: there is no pace to them."""
        self._of(model).tokens += count

    def collect(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily("splice:generation_tokens", "Tokens released", labels=["model_name"])
        gaps = HistogramMetricFamily(
            "splice:inter_token_latency_seconds", "Between tokens released", labels=["model_name"]
        )
        ends = [*map(str, GAP_S), "+Inf"]
        for model, pace in self._models.items():
            tokens.add_metric([model], pace.tokens)
            buckets = [(end, float(count)) for end, count in zip(ends, accumulate(pace.gaps), strict=True)]
            gaps.add_metric([model], buckets, pace.gaps_s)
        yield tokens
        yield gaps

    def _of(self, model: str) -> _Pace:
        pace = self._models.get(model)
        if pace is None:
            pace = self._models[model] = _Pace()
        return pace
