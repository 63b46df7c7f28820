"""Processes of ours, told apart from others that got the same pid later."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence

import msgspec
import psutil


class ProcessId(msgspec.Struct, frozen=True):
    """A pid and the start time that goes with it (seconds since the epoch, as the kernel tells it)."""

    name: str
    pid: int
    started: float

    def find(self) -> psutil.Process | None:
        """The process, or None if it has ended, whoever bears its pid now."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) > 1.0 or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except psutil.NoSuchProcess:
            return None
        return process


def identify(name: str, pid: int) -> ProcessId | None:
    """None if the process has ended already."""
    try:
        return ProcessId(name, pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def bearing(marks: Sequence[str]) -> list[psutil.Process]:
    """All processes that name one of `marks` (paths of ours) in their command line or environment, and their children.

    Whoever started this process is left out, and so is who is told of a mark by `--run-dir`: `splice down` and the
    shell it was typed into name the path too.

    Some processes overwrite both with a title; those are found as descendants of one that did not, so this is asked
    *before* anything is ended.
    """
    found: dict[int, psutil.Process] = {}
    own = psutil.Process()
    spared = {own.pid, *(parent.pid for parent in own.parents())}
    for process in psutil.process_iter():
        if process.pid not in spared and _bears(process, marks):
            found[process.pid] = process
            with contextlib.suppress(psutil.Error):
                found.update({child.pid: child for child in process.children(recursive=True)})
    return [process for pid, process in found.items() if pid not in spared]


def end(processes: Iterable[psutil.Process], *, grace_s: float, kill_s: float = 5.0) -> list[psutil.Process]:
    """SIGTERM, `grace_s` to leave, SIGKILL. Returns those that are still there `kill_s` later."""
    waiting = list(processes)
    for process in waiting:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, waiting = psutil.wait_procs(waiting, timeout=grace_s)
    for process in waiting:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    ends = time.monotonic() + kill_s
    while (waiting := [process for process in waiting if _is_alive(process)]) and time.monotonic() < ends:
        time.sleep(0.05)
    return waiting


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _bears(process: psutil.Process, marks: Sequence[str]) -> bool:
    try:
        words = process.cmdline()
        told = {index + 1 for index, word in enumerate(words) if word == "--run-dir"}
        named = [word for index, word in enumerate(words) if index not in told and not word.startswith("--run-dir=")]
        if any(mark in word for word in named for mark in marks):
            return True
        return any(mark in value for value in process.environ().values() for mark in marks)
    except (psutil.Error, OSError):
        return False
