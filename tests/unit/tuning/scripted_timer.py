"""A `Timer` that runs every call once, so that runners are real, and takes its times from a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from engine.tuning.timer import TooSlow


class ScriptedTimer:
    """`seconds_of(run, rows)` is the time of a runner's function with so many rows. Keeps what it was asked."""

    def __init__(self, seconds_of: Callable[[Callable[..., object], int], float]) -> None:
        self._seconds_of = seconds_of
        self.asked: list[tuple[Callable[..., object], int, float]] = []
        self.is_lost = False

    def seconds(self, calls: Sequence[Callable[[], object]], limit_s: float) -> float:
        for call in calls:
            call()
        first = calls[0]
        assert isinstance(first, partial)
        run, rows = first.func, len(first.args[0])
        self.asked.append((run, rows, limit_s))
        seconds = self._seconds_of(run, rows)
        if seconds > limit_s:
            raise TooSlow(f"{seconds} s, allowed are {limit_s}")
        return seconds

    def settle(self) -> None:
        if self.is_lost:
            raise RuntimeError("an illegal memory access was encountered")
