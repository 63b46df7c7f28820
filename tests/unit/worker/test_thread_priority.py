"""Compute threads give way by so much as is asked, and no other thread of the process does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from engine.steps.step_output import StepOutput
from kvtransfer.thread_priority import LOWEST, give_way
from wire.errors import ErrorCode, SpliceError
from worker.engine_loop import EngineLoop


def nice_of_this_thread() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def on_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_and_those_it_starts_give_way_and_no_other() -> None:
    own = nice_of_this_thread()

    def lowered() -> tuple[int, int]:
        give_way(3)
        return nice_of_this_thread(), on_a_thread(nice_of_this_thread)

    expected = min(LOWEST, own + 3)
    assert on_a_thread(lowered) == (expected, expected)
    assert nice_of_this_thread() == own


def test_giving_way_ends_at_the_lowest_priority() -> None:
    assert on_a_thread(lambda: [give_way(LOWEST), give_way(LOWEST), nice_of_this_thread()][-1]) == LOWEST


@pytest.mark.parametrize("nice", [-1, LOWEST + 1])
def test_a_level_that_is_none_is_refused(nice: int) -> None:
    with pytest.raises(SpliceError) as caught:
        give_way(nice)
    assert caught.value.code is ErrorCode.BAD_SETTING


class Idle:
    """Neither engine nor role has anything to do."""

    expected_step_s = 0.0

    def has_work(self) -> bool:
        return False

    def tick(self) -> None:
        pass

    def on_output(self, output: StepOutput) -> None:
        pass


@pytest.mark.parametrize("nice", [0, 4])
async def test_the_engine_thread_runs_at_the_priority_asked_for(nice: int) -> None:
    idle: Any = Idle()
    deaths: list[BaseException] = []
    loop = EngineLoop(idle, deaths.append, nice)
    loop.start(idle)
    own = nice_of_this_thread()
    assert await loop.call(nice_of_this_thread, 10) == min(LOWEST, own + nice)
    assert loop.stop(10)
    assert not deaths
