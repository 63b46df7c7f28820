"""Time of a kernel on the device, without that of starting it: replays of a captured graph between two events."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from engine.tuning.timer import TooSlow

_WARM_REPLAYS = 2
_MOST_ROUNDS = 200


class GraphTimer:
    """A `Timer` of the current CUDA device. What cannot be captured has no time here: captured is how it would run."""

    def __init__(self, repeats: int = 15, least_s: float = 2e-3) -> None:
        """The median of `repeats` replays, each of at least `least_s`."""
        self._repeats, self._least_s = repeats, least_s

    def seconds(self, calls: Sequence[Callable[[], object]], limit_s: float = float("inf")) -> float:
        """See `Timer`. The first round loads code and is not timed, the second says how often a replay runs them
        all."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

        def timed(run: Callable[[], object]) -> float:
            begin.record(stream)
            run()
            end.record(stream)
            stream.synchronize()
            return float(begin.elapsed_time(end)) * 1e-3

        def one_round() -> None:
            for call in calls:
                call()

        with torch.cuda.stream(stream):
            one_round()
            stream.synchronize()
            once = timed(one_round)
        if once > limit_s * len(calls):
            raise TooSlow(f"{once / len(calls):.3g} s, allowed are {limit_s:.3g}")
        rounds = max(1, min(_MOST_ROUNDS, round(self._least_s / max(once, 1e-6))))
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(rounds):
                    one_round()
        finally:  # torch leaves the thread on the stream of a capture that failed
            torch.cuda.set_stream(before)
        with torch.cuda.stream(stream):
            times = [timed(graph.replay) for _ in range(_WARM_REPLAYS + self._repeats)]
        return statistics.median(times[_WARM_REPLAYS:]) / (rounds * len(calls))

    def settle(self) -> None:
        """See `Timer`. An error that a capture or a launch left behind is told once and gone; one that is told again
        is of a device that is lost."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            torch.cuda.synchronize()
