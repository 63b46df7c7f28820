"""Peers in processes of their own, to be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def process(body: Callable[[Any], None]) -> Iterator[tuple[Any, Any]]:
    """(the process that runs `body(pipe)`, our end of the pipe); killed at the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    started = context.Process(target=body, args=(theirs,))
    started.start()
    theirs.close()
    try:
        yield started, ours
    finally:
        started.kill()  # also when it is frozen
        started.join()
        ours.close()


def freeze(pid: int) -> None:
    """Returns when no thread of the process runs any more: a signal takes its time to reach them."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: all(_state(task) == "T" for task in Path(f"/proc/{pid}/task").iterdir()))


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    """Returns when `condition` holds; a promise that is not kept in `limit_s` fails the test."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "not reached in time"
        time.sleep(0.005)
