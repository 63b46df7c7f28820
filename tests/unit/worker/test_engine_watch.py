"""A frozen engine thread is noticed, a busy one is not, however slow the machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.steps.step_output import StepOutput
from worker.engine_loop import EngineLoop
from worker.engine_watch import PATIENCE_S, STEP_SLACK, EngineWatch

PERIOD_S = 0.1


class Watched:
    """A watch looked at ten times a second of a clock that only this moves."""

    def __init__(self) -> None:
        self.watch = EngineWatch()
        self.now_s, self.turns, self.cpu_s, self.expected_step_s = 100.0, 5, 1.0, 0.0
        self.look()

    def look(self) -> bool:
        return self.watch.look(self.now_s, self.turns, self.cpu_s, self.expected_step_s)

    def pass_time(self, duration_s: float, cpu_share: float = 0.0, turns_per_look: int = 0) -> bool:
        """Whether it hung at any time."""
        hung = False
        for _ in range(round(duration_s / PERIOD_S)):
            self.now_s += PERIOD_S
            self.cpu_s += cpu_share * PERIOD_S
            self.turns += turns_per_look
            hung |= self.look()
        return hung


def test_a_thread_that_stands_still_hangs_after_its_patience():
    watched = Watched()
    assert not watched.pass_time(PATIENCE_S - PERIOD_S)
    assert watched.pass_time(3 * PERIOD_S)


def test_what_the_process_needs_for_itself_does_not_pass_for_work():
    assert Watched().pass_time(2 * PATIENCE_S, cpu_share=0.01)


def test_a_step_that_computes_does_not_hang_however_long_it_takes():
    assert not Watched().pass_time(300, cpu_share=0.05)


def test_an_engine_that_takes_turns_does_not_hang():
    assert not Watched().pass_time(300, turns_per_look=1)


def test_a_step_that_waits_for_a_device_has_the_time_it_was_predicted_to_take():
    watched = Watched()
    watched.expected_step_s = 4.0
    assert not watched.pass_time(STEP_SLACK * 4.0)
    assert watched.pass_time(2 * PATIENCE_S)


def test_a_process_that_was_stopped_as_a_whole_does_not_hang_when_it_goes_on():
    watched = Watched()
    watched.pass_time(PATIENCE_S / 2)
    watched.now_s += 60.0
    assert not watched.look()


def test_a_thread_that_goes_on_hangs_no_more():
    watched = Watched()
    assert watched.pass_time(2 * PATIENCE_S)
    watched.turns += 1
    assert not watched.pass_time(PATIENCE_S / 2)


def test_several_that_look_at_once_see_the_same():
    watched = Watched()
    for _ in range(40):
        watched.pass_time(PERIOD_S)
        verdicts = set()
        for _ in range(3):
            watched.now_s += 0.001
            watched.cpu_s += 0.0005
            verdicts.add(watched.look())
        assert len(verdicts) == 1
    assert verdicts == {True}


class Role:
    def on_output(self, output: StepOutput) -> None:
        pass

    def tick(self) -> None:
        pass


class OneStep:
    """An engine whose only step is `step`."""

    expected_step_s = 0.0

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        self.began = threading.Event()

    def has_work(self) -> bool:
        return not self.began.is_set()

    def step(self) -> StepOutput:
        self.began.set()
        self._step()
        return StepOutput()


@pytest.fixture
def hangs() -> Iterator[Callable[[Callable[[], None], float], bool]]:
    """Runs one step on an engine thread and says whether it counted as hung within a time."""
    loops: list[EngineLoop] = []

    def run(step: Callable[[], None], duration_s: float) -> bool:
        deaths: list[BaseException] = []
        engine: Any = OneStep(step)
        loop = EngineLoop(engine, deaths.append)
        loops.append(loop)
        loop.start(Role())
        assert engine.began.wait(10)
        ends_s = time.monotonic() + duration_s
        while time.monotonic() < ends_s:
            if loop.is_hung():
                return True
            time.sleep(PERIOD_S)
        return False

    yield run
    assert all(loop.stop(10) for loop in loops)


def test_a_frozen_engine_thread_is_noticed(hangs):
    thaw = threading.Event()
    try:
        assert hangs(lambda: thaw.wait(60), 30.0)
    finally:
        thaw.set()


def test_a_computing_engine_thread_is_not_taken_for_a_frozen_one(hangs):
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    try:
        assert not hangs(compute, 3 * PATIENCE_S)
    finally:
        over.set()


def test_an_idle_engine_thread_is_not_taken_for_a_frozen_one(hangs):
    assert not hangs(lambda: None, 3 * PATIENCE_S)
