"""A tuner whose findings outlast its process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.ops.cuda.library import Library
from engine.tuning.attempts import AttemptNotes
from engine.tuning.cache import TacticCache
from engine.tuning.graph_timer import GraphTimer
from engine.tuning.machine import machine_key
from engine.tuning.runner import Tunable
from engine.tuning.tuner import Tuner


def kept_tuner(tunables: Iterable[Tunable], library: Library, folder: Path) -> Tuner:
    """On the current GPU, with its findings in `folder`, which is made. Raises SpliceError where the driver does not
    answer."""
    key = machine_key(library)
    return Tuner(tunables, GraphTimer(), TacticCache(folder, key), AttemptNotes(folder, key))
