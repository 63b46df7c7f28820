"""Trying every runner of an operation: is it right, does it keep rows, how long does it take. What fails is left
out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from engine.tuning.decision import Entry, Mode, Trial, decide
from engine.tuning.runner import Inputs, Runner, Tunable, outputs_of
from engine.tuning.shapes import BUCKETS, Shape
from engine.tuning.timer import Timer, TooSlow
from wire.errors import ErrorCode, SpliceError

_log = logging.getLogger(__name__)
_CHECKED_ROWS = 64
"""Of a bucket's rows so many, from its beginning and its end, are compared with the exact ones."""
_MOST_SETS = 8
FIRST_LIMIT_S, TIMES_THE_BEST = 1.0, 20.0
"""A call may take so long, and so many times the best of its bucket so far."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Store(Protocol):
    """What keeps entries; `cache.TacticCache` on disk."""

    def read(self) -> Mapping[tuple[Shape, Mode], Entry]:
        """All that is kept for this machine."""

    def add(self, entries: Iterable[Entry]) -> Mapping[tuple[Shape, Mode], Entry]:
        """Keeps these too and returns all: in deterministic mode an entry that came first stays."""


class Attempts(Protocol):
    """Remembers what was being tried when a process ended."""

    def begin(self, shape: Shape, tactic: str) -> None: ...

    def end(self) -> None: ...

    def fatal(self) -> frozenset[tuple[Shape, str]]:
        """What processes that are no more were trying."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What `tune` came to."""

    entries: tuple[Entry, ...]
    """In the order of the shapes."""
    from_store: int
    """Entries that were not tried now."""


class Tuner:
    """Tunes shapes of these operations, one after another, on this process's device."""

    def __init__(
        self,
        tunables: Iterable[Tunable],
        timer: Timer,
        store: Store | None = None,
        attempts: Attempts | None = None,
        *,
        buckets: tuple[int, ...] = BUCKETS,
        rotated_bytes: int = 256 << 20,
    ) -> None:
        """`rotated_bytes`: inputs of one trial take turns until they are larger than this, than any cache."""
        self._tunables = {tunable.op: tunable for tunable in tunables}
        self._timer, self._store, self._attempts = timer, store, attempts
        self._buckets, self._rotated_bytes = buckets, rotated_bytes

    def tune(self, shapes: Sequence[Shape], mode: Mode) -> Tuned:
        """An entry a shape: from the store where it has one for the same runners, else found now and stored.

        A runner that raises, is wrong, breaks its promise or is too slow is skipped and named in the entry, and logged
        by every process that leaves it out.
        Raises SpliceError where the device is no more to be used after one, or an operation is unknown.
        """
        kept = {} if self._store is None else dict(self._store.read())
        wanted = list(dict.fromkeys(shapes))
        old = [shape for shape in wanted if self._is_current(kept.get((shape, mode)))]
        found: list[Entry] = []
        for shape in wanted:
            if shape in old:
                _report_skipped(kept[shape, mode])
            else:
                found.append(self._try_all(shape, mode))
                _report(found[-1])
        if found and self._store is not None:
            kept = dict(self._store.add(found))
        else:
            kept |= {(entry.shape, entry.mode): entry for entry in found}
        return Tuned(tuple(kept[shape, mode] for shape in wanted), len(old))

    def _is_current(self, entry: Entry | None) -> bool:
        return entry is not None and entry.tried == tuple(runner.name for runner in self._of(entry.shape, entry.mode))

    def _of(self, shape: Shape, mode: Mode) -> tuple[Runner, ...]:
        """Runners that may be chosen in this mode and can do the shape with some of the rows."""
        tunable = self._tunables.get(shape.op)
        if tunable is None:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"nothing is known of operation {shape.op}, expected one of {list(self._tunables)}",
            )

        def is_able(runner: Runner) -> bool:
            able = any(runner.refusal(shape, rows) is None for rows in self._buckets)
            return able and (runner.keeps_rows or mode == "fast")

        return tuple(runner for runner in tunable.runners if is_able(runner))

    def _try_all(self, shape: Shape, mode: Mode) -> Entry:
        runners, tunable = self._of(shape, mode), self._tunables[shape.op]
        fatal = frozenset() if self._attempts is None else self._attempts.fatal()
        trials: list[Trial] = []
        with torch.inference_mode():
            sets = [tunable.make(shape, self._buckets[-1], seed) for seed in range(self._sets(tunable, shape))]
            broken = {
                runner.name: reason
                for runner in runners
                if (reason := self._why_broken(tunable, runner, shape, sets[0], (shape, runner.name) in fatal))
            }
            for bucket in self._buckets:
                best = float("inf")
                for runner in runners:
                    if runner.refusal(shape, bucket) is not None:
                        continue
                    if runner.name in broken:
                        trials.append(Trial(runner.name, bucket, None, broken[runner.name]))
                        continue
                    limit_s = min(FIRST_LIMIT_S, TIMES_THE_BEST * best)
                    trials.append(self._timed(tunable, runner, shape, bucket, sets, limit_s))
                    best = min(best, trials[-1].seconds or best)
        return decide(shape, mode, {runner.name: runner.keeps_rows for runner in runners}, trials)

    def _sets(self, tunable: Tunable, shape: Shape) -> int:
        """As many as keep few rows out of a cache, and no more than a few times that memory with all rows."""
        few, many = (max(1, tunable.moved_bytes(shape, rows)) for rows in (self._buckets[0], self._buckets[-1]))
        return max(1, min(_MOST_SETS, self._rotated_bytes // few, 4 * self._rotated_bytes // many))

    def _why_broken(self, tunable: Tunable, runner: Runner, shape: Shape, inputs: Inputs, is_fatal: bool) -> str | None:
        """What is wrong with a runner whatever the bucket; None where nothing is."""
        if is_fatal:
            return "processes ended while they tried this"
        able = [rows for rows in self._buckets if runner.refusal(shape, rows) is None]
        try:
            self._begin(shape, runner)
            for rows in (able[0], able[-1]):
                if reason := _why_wrong(tunable, runner, inputs, rows):
                    return reason
            if runner.keeps_rows and (reason := _why_not_kept(tunable, runner, inputs, able)):
                return reason
        except Exception as error:
            return self._reason(runner, shape, error)
        finally:
            self._settle(runner, shape)
        return None

    def _timed(
        self, tunable: Tunable, runner: Runner, shape: Shape, bucket: int, sets: Sequence[Inputs], limit_s: float
    ) -> Trial:
        try:
            self._begin(shape, runner)
            calls = [partial(runner.run, *tunable.rows_of(inputs, slice(0, bucket))) for inputs in sets]
            return Trial(runner.name, bucket, self._timer.seconds(calls, limit_s))
        except TooSlow as error:
            return Trial(runner.name, bucket, None, f"too slow: {error}")
        except Exception as error:
            return Trial(runner.name, bucket, None, self._reason(runner, shape, error))
        finally:
            self._settle(runner, shape)

    def _begin(self, shape: Shape, runner: Runner) -> None:
        if self._attempts is not None:
            self._attempts.begin(shape, runner.name)

    def _reason(self, runner: Runner, shape: Shape, error: Exception) -> str:
        _log.debug("%s of %s", runner.name, shape, exc_info=error)
        return f"raised {type(error).__name__}: {str(error)[:200]}"

    def _settle(self, runner: Runner, shape: Shape) -> None:
        """A failure that the device does not survive ends the process; the next one leaves this runner out."""
        try:
            self._timer.settle()
        except Exception as error:
            raise SpliceError(
                ErrorCode.INTERNAL_ERROR,
                f"the device was lost while {runner.name} was tried for {shape} ({error}); start this process again:"
                " it leaves out what took two along",
            ) from error
        if self._attempts is not None:
            self._attempts.end()


def _why_wrong(tunable: Tunable, runner: Runner, inputs: Inputs, rows: int) -> str | None:
    found = outputs_of(runner.run(*tunable.rows_of(inputs, slice(0, rows))))
    allowed = tunable.tolerance if runner.tolerance is None else runner.tolerance
    for part in (slice(0, min(rows, _CHECKED_ROWS)), slice(max(0, rows - _CHECKED_ROWS), rows)):
        for place, (output, wanted) in enumerate(zip(found, tunable.exact(tunable.rows_of(inputs, part)), strict=True)):
            if output.shape[0] != rows or output[part].shape != wanted.shape:
                return f"output {place} of {rows} rows is of shape {tuple(output.shape)}"
            distance = float((output[part].double() - wanted).norm() / wanted.norm().clamp_min(1e-300))
            if not distance <= allowed:
                return f"output {place} of {rows} rows is {distance:.2g} from exact, allowed are {allowed:.2g}"
    return None


def _why_not_kept(tunable: Tunable, runner: Runner, inputs: Inputs, able: Sequence[int]) -> str | None:
    """Compares rows of the largest bucket with the same rows computed in every smaller one, from the beginning and from
    an odd place."""
    most = able[-1]
    together = outputs_of(runner.run(*tunable.rows_of(inputs, slice(0, most))))
    for rows in able[:-1]:
        for first in {0, min(7, most - rows)}:
            part = slice(first, first + rows)
            alone = outputs_of(runner.run(*tunable.rows_of(inputs, part)))
            if not all(_same_bits(one[part], other) for one, other in zip(together, alone, strict=True)):
                return f"rows {first} to {first + rows - 1} of {most} have other bits than in a batch of {rows}"
    return None


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = _BITS[one.element_size()]
    return bool((one.contiguous().view(bits) == other.contiguous().view(bits)).all())


def _report_skipped(entry: Entry) -> None:
    """Once for each runner and reason, whatever the number of buckets."""
    for reason in dict.fromkeys((trial.tactic, trial.skipped) for trial in entry.skipped):
        _log.warning("tuning %s: %s is left out: %s", entry.shape, *reason)


def _report(entry: Entry) -> None:
    _report_skipped(entry)
    chosen = ", ".join(f"{bucket or 'all'} rows {name}" for bucket, name in entry.chosen)
    _log.info("tuning %s: %s", entry.shape, chosen or "no tactic works")
