"""Measurements in a process of their own, which is followed line by line: one that dies or hangs costs its task
alone."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.limited import end_group

_TO_BEGIN_S = 60.0
"""For imports, before the first task begins."""
_TO_SAY_S = 3.0
"""For its last words, once it has been aborted."""
_WORDS = 6
_MARKS = ("begun", "index")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the task `index`: its result as plain data, or why there is none."""

    index: int
    result: Any = None
    error: str | None = None


def outcomes(
    command: Callable[[int], Sequence[str]],
    limit_s: Callable[[int], float | None],
    count: int,
    cwd: Path,
    env: dict[str, str] | None = None,
) -> Iterator[Outcome]:
    """One for each of `count` tasks, in order. `command(first)` is a process that runs them from `first` on;
    `limit_s(index)` what a task may take from now on, None where it shall not be begun."""
    following = 0
    while following < count:
        if limit_s(following) is None:
            yield Outcome(following, error="not measured: out of time")
            following += 1
            continue
        for outcome in _followed(command(following), following, limit_s, count, cwd, env):
            yield outcome
            following = outcome.index + 1


def _followed(
    command: Sequence[str],
    first: int,
    limit_s: Callable[[int], float | None],
    count: int,
    cwd: Path,
    env: dict[str, str] | None,
) -> Iterator[Outcome]:
    """At least one outcome; ends with the process, or ends it."""
    process = subprocess.Popen(
        list(command), cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        process_group=0,
    )  # fmt: skip
    assert process.stdout is not None  # noqa: S101 - asked for above
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    words: list[str] = []
    index, allowed, is_between = first, _TO_BEGIN_S, False
    try:
        while index < count:
            try:
                line = lines.get(timeout=allowed)
            except queue.Empty:
                words += _where_it_is(process, lines)
                yield Outcome(index, error=f"not done after {allowed:.0f} s; {_last(words)}")
                return
            if line is None and is_between:
                return
            if line is None:
                yield Outcome(index, error=f"its process ended with {process.wait()}; {_last(words)}")
                return
            said = _parsed(line)
            if said is None:
                words.append(line.rstrip())
            elif "index" in said:
                yield Outcome(said["index"], said.get("result"), said.get("error"))
                index, words, is_between = said["index"] + 1, [], True
                allowed = _TO_BEGIN_S
            else:
                is_between, limit = False, limit_s(said["begun"])
                if limit is None:
                    yield Outcome(index, error="not measured: out of time")
                    return
                allowed = limit
    finally:
        end_group(process)
        process.wait()


def _where_it_is(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> list[str]:
    """What a process that hangs says when it is aborted: its fault handler names the line of Python."""
    process.send_signal(signal.SIGABRT)
    words: list[str] = []
    with suppress(queue.Empty):
        while len(words) < _WORDS and (line := lines.get(timeout=_TO_SAY_S)) is not None:
            words += [line.strip()] if line.strip() else []
    return words


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _parsed(line: str) -> dict[str, Any] | None:
    """What the process says in our form; None for anything else, which libraries print."""
    if not line.startswith("{"):
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and any(mark in said for mark in _MARKS) else None


def _last(words: Sequence[str]) -> str:
    """Where its fault handler speaks, what it begins with: the line of Python stands there."""
    fatal = next((place for place, word in enumerate(words) if word.startswith("Fatal Python error")), None)
    if fatal is not None:
        return f"its last words: {' | '.join(words[max(0, fatal - 2) : fatal + _WORDS])[:600]}"
    return f"its last words: {' | '.join(words[-_WORDS:])[-600:]}" if words else "it said nothing"
