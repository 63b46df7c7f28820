"""What a running engine asks: which runner, now. Looks up and never tries, so that it may be asked under capture."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from engine.tuning.decision import ALL_ROWS, Entry, Mode
from engine.tuning.runner import Runner, Tunable
from engine.tuning.shapes import BUCKETS, Shape, bucket_of
from engine.tuning.tactic_counts import TacticCounts
from wire.errors import ErrorCode, SpliceError

_log = logging.getLogger(__name__)


class TacticTable:
    """The choice of every tuned shape. One thread asks: that of the engine."""

    def __init__(self, tunables: Iterable[Tunable], mode: Mode, entries: Iterable[Entry]) -> None:
        """Entries of the other mode count for nothing."""
        self._tunables = {tunable.op: tunable for tunable in tunables}
        self._mode: Mode = mode
        self._chosen: dict[Shape, dict[int, Runner]] = {}
        self._buckets: dict[Shape, tuple[int, ...]] = {}
        self._hits = self._misses = self._skipped = 0
        self._missed: set[Shape] = set()
        for entry in entries:
            if entry.mode == mode:
                self._take(entry)

    def _take(self, entry: Entry) -> None:
        runners = {runner.name: runner for runner in self._tunables[entry.shape.op].runners}
        known = {bucket: runners[name] for bucket, name in entry.chosen if name in runners}
        self._skipped += len({trial.tactic for trial in entry.skipped})
        if known:
            self._chosen[entry.shape], self._buckets[entry.shape] = known, tuple(sorted(known))

    def runner(self, shape: Shape, rows: int) -> Runner:
        """The tuned one, else the first that can do it; in deterministic mode one that keeps rows, whatever `rows` is.

        Raises SpliceError where there is none.
        """
        chosen = self._chosen.get(shape)
        if chosen is not None:
            runner = chosen[ALL_ROWS if self._mode == "deterministic" else bucket_of(rows, self._buckets[shape])]
            if self._mode == "deterministic" or runner.refusal(shape, rows) is None:
                self._hits += 1
                return runner
        self._misses += 1
        if shape not in self._missed:
            self._missed.add(shape)
            _log.warning("nothing was tuned for %s with %d rows: the first runner that can is taken", shape, rows)
        return self._untuned(shape, rows)

    def identity(self, shapes: Iterable[Shape]) -> Mapping[str, str]:
        """For `numerics_id`: the tactic of every shape of a model, or that rows decide on tactics."""
        if self._mode == "fast":
            return {"tactics": "fast"}
        return {str(shape): self._for_all(shape).name for shape in sorted(set(shapes))}

    @property
    def counts(self) -> TacticCounts:
        return TacticCounts(self._hits, self._misses, self._skipped)

    def _for_all(self, shape: Shape) -> Runner:
        chosen = self._chosen.get(shape)
        return chosen[ALL_ROWS] if chosen is not None else self._untuned(shape, BUCKETS[-1])

    def _untuned(self, shape: Shape, rows: int) -> Runner:
        tunable = self._tunables.get(shape.op)
        for runner in () if tunable is None else tunable.runners:
            if self._mode == "deterministic":
                if runner.keeps_rows and all(runner.refusal(shape, bucket) is None for bucket in BUCKETS):
                    return runner
            elif runner.refusal(shape, rows) is None:
                return runner
        kind = "that keeps a row's bits " if self._mode == "deterministic" else ""
        raise SpliceError(ErrorCode.MISSING_PART, f"no runner {kind}can do {shape} with {rows} rows here")
