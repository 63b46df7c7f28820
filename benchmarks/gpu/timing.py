"""Time of a kernel, measured as the engine's tuner measures it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.tuning.graph_timer import GraphTimer

_TIMER = GraphTimer()


def seconds_of(calls: Sequence[Callable[[], object]]) -> float:
    """Median time of one call, replayed from a captured graph. `calls` differ in their inputs, so that none finds its
    own in a cache."""
    return _TIMER.seconds(calls)
