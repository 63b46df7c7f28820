"""Peers in processes of their own, to be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
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
        started.kill()
        started.join()
        ours.close()


def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    """Returns when `condition` holds; a promise that is not kept in `limit_s` fails the test."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "not reached in time"
        time.sleep(0.005)
