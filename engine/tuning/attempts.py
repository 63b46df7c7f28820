"""What is being tried, noted on disk: a kernel that takes its process along is left out by the next one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from engine.tuning.machine import MachineKey
from engine.tuning.shapes import Shape

_log = logging.getLogger(__name__)


class AttemptNotes:
    """A file for each process that tunes, there only while it tries something; two lines, the shape and the tactic."""

    def __init__(self, folder: Path, machine: MachineKey) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = f"tactics-{machine.digest}.trying"
        self._folder, self._own = folder, folder / f"{self._stem}-{os.getpid()}"

    def begin(self, shape: Shape, tactic: str) -> None:
        self._own.write_text(f"{shape.op} {shape.n} {shape.k}\n{tactic}\n")

    def end(self) -> None:
        self._own.unlink(missing_ok=True)

    def fatal(self) -> frozenset[tuple[Shape, str]]:
        """Notes of processes that are no more. They stay: remove a file to have its tactic tried again."""
        return frozenset(
            note
            for path in self._folder.glob(f"{self._stem}-*")
            if not _runs(path.name.rpartition("-")[2]) and (note := _read(path))
        )


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
