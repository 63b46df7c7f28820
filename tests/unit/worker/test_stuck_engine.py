"""A worker that is told to end does so, also where its engine's thread does not come back."""

from __future__ import annotations

import pytest

from worker import process


class Loop:
    def __init__(self, *, ends: bool) -> None:
        self.ends, self.asked_s = ends, 0.0

    def stop(self, timeout_s: float) -> bool:
        self.asked_s = timeout_s
        return self.ends


@pytest.mark.parametrize("ends", [True, False])
def test_a_thread_that_does_not_end_takes_the_process_along_before_its_memory_is_taken(monkeypatch, ends):
    left: list[int] = []
    monkeypatch.setattr(process.os, "_exit", left.append)
    loop = Loop(ends=ends)
    process._end_engine(loop)
    assert loop.asked_s == process.ENGINE_STOP_S
    assert left == ([] if ends else [70])
