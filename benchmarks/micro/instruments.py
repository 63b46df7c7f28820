"""Two ways to say how much work something is, without saying how long it took."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

Work = Callable[[], object]

ROUNDS = 25
_MIN_S = 0.004
"""Of one timed stretch: far above the clock's resolution, far below a scheduler's time slice."""


def count_instructions(work: Work) -> int:
    """Instructions of the Python virtual machine that one call of `work` executes, callees included.

    Exact and repeatable for one minor version of Python; native code counts as the one instruction that calls it.
    """
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def cost_ratio(work: Work, yardstick: Work, *, rounds: int = ROUNDS) -> float:
    """CPU time of one `work` over that of one `yardstick`: the least of each over `rounds` rounds taken in turn.

    Least, because a neighbour can only add. In turn, because clocks and caches drift.
    """
    calls, yard_calls = _calls(work), _calls(yardstick)
    best = best_yard = float("inf")
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            best = min(best, _cpu_s(work, calls))
            best_yard = min(best_yard, _cpu_s(yardstick, yard_calls))
    finally:
        gc.enable()
    return best / best_yard


def _calls(work: Work) -> int:
    """How many calls make a stretch long enough to time."""
    calls = 1
    while _cpu_s(work, calls) * calls < _MIN_S:
        calls *= 2
    return calls


def _cpu_s(work: Work, calls: int) -> float:
    began_s = time.thread_time()
    for _ in range(calls):
        work()
    return (time.thread_time() - began_s) / calls
