"""How near decoding comes to the one bound nothing gets past: reading every weight once per step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second, best of several rounds, all threads together."""

    read: float
    copy: float
    """Bytes read plus bytes written."""


@dataclass(frozen=True, slots=True)
class Floor:
    """`floor_ms` is the least time of a decode step; `share` is floor / measured, 1 being the bound itself."""

    floor_ms: float
    measured_ms: float
    share: float


def floor(weight_bytes: int, bytes_per_s: float, step_ms: float) -> Floor:
    """`step_ms`: measured time per token of a single stream, whose every step reads all weights once."""
    floor_ms = 1000.0 * weight_bytes / bytes_per_s
    return Floor(floor_ms, step_ms, floor_ms / step_ms)


def measure_bandwidth(working_set: int, threads: int) -> Bandwidth:
    """Reads and copies `working_set` bytes split over `threads`; numpy leaves the interpreter lock for both."""
    part = max(1, working_set // threads)
    sources = [np.ones(part, dtype=np.uint8) for _ in range(threads)]  # of all types, the one whose maximum waits least
    targets = [np.empty_like(source) for source in sources]
    moved = float(part * threads)
    read_s = _best_s([_reading(source) for source in sources])
    copy_s = _best_s([_copying(target, source) for target, source in zip(targets, sources, strict=True)])
    return Bandwidth(moved / read_s, 2.0 * moved / copy_s)


def _reading(source: NDArray[np.uint8]) -> Callable[[], object]:
    return source.max


def _copying(target: NDArray[np.uint8], source: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: np.copyto(target, source)


def _best_s(works: list[Callable[[], object]]) -> float:
    """Seconds of the best round: from the first thread's beginning to the last one's end."""
    together = threading.Barrier(len(works))
    spans: list[list[tuple[float, float]]] = [[] for _ in works]

    def repeat(work: Callable[[], object], own: list[tuple[float, float]]) -> None:
        for _ in range(ROUNDS):
            together.wait()
            began_s = time.perf_counter()
            work()
            own.append((began_s, time.perf_counter()))

    runners = [threading.Thread(target=repeat, args=pair) for pair in zip(works, spans, strict=True)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    lasted_s = [max(own[turn][1] for own in spans) - min(own[turn][0] for own in spans) for turn in range(ROUNDS)]
    return min(lasted_s)
