"""All processes of a server, however they were started."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import psutil

MARK = "BENCH_SERVER_TREE"
"""Environment variable that a server started by us passes on to every process it starts, detached ones too."""


@dataclass(frozen=True, slots=True)
class ServerTree:
    """How to find the processes: a root and its descendants, and every process that bears the mark's value."""

    root: int | None
    mark: str | None = None

    def processes(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        if self.root is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(self.root)
                found = {each.pid: each for each in (root, *root.children(recursive=True))}
        if self.mark is not None:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error, OSError):
                    if process.pid not in found and process.environ().get(MARK) == self.mark:
                        found[process.pid] = process
        return list(found.values())


class TreeWatcher:
    """Follows a tree through a run at little cost, since it runs beside the client that measures.

    Only processes that appeared since the last look are examined: a child is born after its parent was seen, and one
    that was detached at once bears the mark.
    """

    def __init__(self, tree: ServerTree) -> None:
        self._mark = None if tree.mark is None else f"{MARK}={tree.mark}".encode()
        self._seen = _pids()
        self._members = {process.pid for process in tree.processes()}

    def members(self) -> set[int]:
        """Pids of the server now."""
        now = _pids()
        for pid in sorted(now - self._seen):
            if self._belongs(pid):
                self._members.add(pid)
        self._seen = now
        self._members &= now
        return set(self._members)

    def _belongs(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                parent = int(stat.read().rpartition(b") ")[2].split()[1])
            if parent in self._members or self._mark is None:
                return parent in self._members
            with open(f"/proc/{pid}/environ", "rb") as environ:
                return self._mark in environ.read().split(b"\0")
        except OSError:  # gone already, or not ours to look at
            return False


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}
