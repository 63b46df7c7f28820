"""Time of a kernel, without that of starting it: replays of a captured graph between two events."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch


def seconds_of(calls: Sequence[Callable[[], object]], repeats: int = 15, least_s: float = 2e-3) -> float:
    """Median time of one call. `calls` differ in their inputs, so that none finds its own in a cache; they are captured
    one after another, as often as makes a replay last `least_s`, and the graph is replayed.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        stream.synchronize()
        begin.record(stream)
        for call in calls:
            call()
        end.record(stream)
        stream.synchronize()
    once = float(begin.elapsed_time(end)) * 1e-3
    rounds = max(1, min(200, round(least_s / max(once, 1e-6))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for call in calls:
                call()
    times: list[float] = []
    with torch.cuda.stream(stream):
        for index in range(repeats + 2):
            begin.record(stream)
            graph.replay()
            end.record(stream)
            stream.synchronize()
            if index >= 2:
                times.append(float(begin.elapsed_time(end)) * 1e-3)
    return statistics.median(times) / (rounds * len(calls))
