"""From what was measured to what is chosen: plain data in, plain data out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.tuning.shapes import Shape

Mode = Literal["fast", "deterministic"]
MARGIN = 0.05
"""An earlier tactic is kept against one that is faster by no more: workers that measure the same machine with some
noise are to agree."""
ALL_ROWS = 0
"""The bucket of a choice that holds for any number of rows."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A tactic on one bucket: its time, or why it has none."""

    tactic: str
    bucket: int
    seconds: float | None
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was found for one shape in one mode."""

    shape: Shape
    mode: Mode
    tried: tuple[str, ...]
    """Names of all tactics there were, in order of preference. Where there are others now, this entry is old."""
    chosen: tuple[tuple[int, str], ...]
    """(bucket, tactic), ascending; in deterministic mode one, of `ALL_ROWS`. Empty where every tactic failed."""
    trials: tuple[Trial, ...]

    @property
    def skipped(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.seconds is None)


def decide(shape: Shape, mode: Mode, tactics: Mapping[str, bool], trials: Sequence[Trial]) -> Entry:
    """`tactics`, in order of preference, says of each whether it keeps a row's bits in any company."""
    if mode == "fast":
        chosen = fastest_by_bucket(tuple(tactics), trials)
    else:
        one = best_for_all(tuple(name for name, keeps_rows in tactics.items() if keeps_rows), trials)
        chosen = () if one is None else ((ALL_ROWS, one),)
    return Entry(shape, mode, tuple(tactics), chosen, tuple(trials))


def fastest_by_bucket(tactics: Sequence[str], trials: Sequence[Trial]) -> tuple[tuple[int, str], ...]:
    """Of each bucket in which any tactic has a time."""
    times = _times(tactics, trials)
    return tuple((bucket, _preferred(tactics, times[bucket])) for bucket in sorted(times) if times[bucket])


def best_for_all(tactics: Sequence[str], trials: Sequence[Trial]) -> str | None:
    """The one whose time, as a multiple of each bucket's best, is least on the average; only tactics that have a time
    in every bucket that was tried. None where none has."""
    times = _times(tactics, trials)
    whole = [name for name in tactics if times and all(name in bucket for bucket in times.values())]
    if not whole:
        return None
    best = {bucket: min(found[name] for name in whole) for bucket, found in times.items()}
    costs = {name: sum(times[bucket][name] / best[bucket] for bucket in times) / len(times) for name in whole}
    return _preferred(whole, costs)


def _times(tactics: Sequence[str], trials: Sequence[Trial]) -> dict[int, dict[str, float]]:
    """By bucket, also those in which nothing has a time."""
    times: dict[int, dict[str, float]] = {trial.bucket: {} for trial in trials}
    for trial in trials:
        if trial.tactic in tactics and trial.seconds is not None:
            times[trial.bucket][trial.tactic] = trial.seconds
    return times


def _preferred(tactics: Sequence[str], costs: Mapping[str, float]) -> str:
    limit = min(costs.values()) * (1 + MARGIN)
    return next(name for name in tactics if name in costs and costs[name] <= limit)
