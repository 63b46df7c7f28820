"""What is being tried, noted on disk: a kernel that takes its process along is left out by the next one."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from engine.tuning.machine import MachineKey
from engine.tuning.shapes import Shape

_log = logging.getLogger(__name__)


class AttemptNotes:
    """A file for each process that tunes, there only while it tries something; two lines, the shape and the tactic.

    One such end may be chance, somebody killed the process; a second while the same was tried is not.
    """

    def __init__(self, folder: Path, machine: MachineKey) -> None:
        self._stem = f"tactics-{machine.digest}.trying"
        self._folder, self._own = folder, folder / f"{self._stem}-{os.getpid()}"
        self._trying: tuple[Shape, str] | None = None
        self._is_silent = False

    def begin(self, shape: Shape, tactic: str) -> None:
        """Before it is tried. Where nothing can be written that is said, and tuning goes on without notes."""
        self._trying = shape, tactic
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._own.write_text(f"{shape.op} {shape.n} {shape.k}\n{tactic}\n")
        except OSError as error:
            if not self._is_silent:
                _log.warning("no notes of what is tried can be kept in %s: %s", self._folder, error)
            self._is_silent = True

    def end(self) -> None:
        """The process is still there: what an earlier one was trying when it ended was not why."""
        if not self._is_silent:
            self._own.unlink(missing_ok=True)
            for path, note in self._left().items():
                if note == self._trying:
                    path.unlink(missing_ok=True)
        self._trying = None

    def fatal(self) -> frozenset[tuple[Shape, str]]:
        """What two processes that are no more were trying. Their notes stay: remove them to have it tried again."""
        counts = Counter(self._left().values())
        return frozenset(note for note, count in counts.items() if count > 1)

    def _left(self) -> dict[Path, tuple[Shape, str]]:
        """Notes of processes that are no more."""
        left: dict[Path, tuple[Shape, str]] = {}
        for path in self._folder.glob(f"{self._stem}-*"):
            if not _runs(path.name.rpartition("-")[2]):
                note = _read(path)
                if note is not None:
                    left[path] = note
        return left


def _read(path: Path) -> tuple[Shape, str] | None:
    try:
        sizes, tactic = path.read_text().splitlines()
        op, n, k = sizes.split()
        return Shape(op, int(n), int(k)), tactic
    except (OSError, ValueError) as error:
        _log.warning("%s says nothing of what was tried: %s", path, error)
        return None


def _runs(pid: str) -> bool:
    """Another user's process counts as running."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):
        return True
    return True
