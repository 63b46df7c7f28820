"""What was found, on disk: one file a machine key, shared by this machine's processes and carried to others like it.

A file that cannot be read, or that holds another machine's findings, is a miss and is said, never an error: tuning
writes it anew. Writers take turns by a lock beside the file and replace it whole, so a reader sees an old file or a new
one.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.tuning.decision import Entry, Mode
from engine.tuning.machine import MachineKey
from engine.tuning.shapes import Shape

_log = logging.getLogger(__name__)
FORMAT = 1
Entries = dict[tuple[Shape, Mode], Entry]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    machine: MachineKey
    entries: tuple[Entry, ...]


class TacticCache:
    """The entries of one machine key, in `folder`."""

    def __init__(self, folder: Path, machine: MachineKey) -> None:
        self.path = folder / f"tactics-{machine.digest}.json"
        self._machine = machine

    def read(self) -> Entries:
        """All that is kept; nothing, with a warning, where the file cannot be used."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            return self._unusable(str(error))
        try:
            file = msgspec.json.decode(text, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._unusable(str(error))
        if file.format != FORMAT or file.machine != self._machine:
            return self._unusable(f"it is of format {file.format} and {file.machine}")
        return {(entry.shape, entry.mode): entry for entry in file.entries}

    def add(self, entries: Iterable[Entry]) -> Entries:
        """Keeps these too and returns all that is kept. In deterministic mode an entry of the same runners that came
        first stays: processes that tuned at once end with one choice. Where nothing can be written that is said, and
        the entries hold for this process."""
        found = list(entries)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                together = _joined(self.read(), found)
                self._write(together)
        except OSError as error:
            _log.warning("tactics are not kept at %s: %s", self.path, error)
            together = _joined(self.read(), found)
        return together

    def _write(self, entries: Entries) -> None:
        ordered = tuple(entries[key] for key in sorted(entries))
        text = msgspec.json.format(msgspec.json.encode(_File(FORMAT, self._machine, ordered)), indent=1)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            partial.write_bytes(text + b"\n")
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _unusable(self, why: str) -> Entries:
        _log.warning("the tactics in %s are not used: %s", self.path, why)
        return {}


def _joined(kept: Mapping[tuple[Shape, Mode], Entry], found: Iterable[Entry]) -> Entries:
    together = dict(kept)
    for entry in found:
        before = together.get((entry.shape, entry.mode))
        if before is None or entry.mode == "fast" or before.tried != entry.tried:
            together[entry.shape, entry.mode] = entry
    return together
