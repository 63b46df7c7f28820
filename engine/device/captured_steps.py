"""Steps of a few fixed sizes, captured once and replayed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.device.buckets import Buckets, GraphKey
from engine.device.runtime import DeviceRuntime
from engine.device.step_memory import StepMemory
from engine.steps.batch import StepBatch
from engine.steps.step_arrays import StepArrays
from engine.steps.step_plan import StepPlan
from wire.errors import SpliceError

_log = logging.getLogger(__name__)
Compute = Callable[[StepPlan], torch.Tensor]
"""A step's logits `[rows, vocab]` float32 from its plan."""


@dataclass(frozen=True, slots=True)
class _Captured:
    logits: torch.Tensor
    replay: Callable[[], None]


class CapturedSteps:
    """Graphs by key. Largest first, so that those after it find room in the memory it took.

    One that is first asked for by a step, and that the device will not record or has no memory for, is done without
    from then on.
    """

    def __init__(self, runtime: DeviceRuntime, buckets: Buckets, block_tokens: int, compute: Compute) -> None:
        self._runtime = runtime
        self._buckets = buckets
        self._compute = compute
        self._memory = StepMemory(runtime, buckets.largest, block_tokens)
        self._graphs: dict[GraphKey, _Captured] = {}
        self._refused: set[GraphKey] = set()

    @property
    def keys(self) -> tuple[GraphKey, ...]:
        """Those captured, in that order."""
        return tuple(self._graphs)

    def capture(self, key: GraphKey) -> None:
        """Now rather than when it is first asked for. Raises SpliceError where that cannot be."""
        self._memory.write(key, None)
        plan = self._memory.plan(key)
        self._graphs[key] = _Captured(*self._runtime.capture(lambda: self._compute(plan)))

    def capture_common(self) -> None:
        """Before the first step."""
        began_s = time.perf_counter()
        for key in self._buckets.common():
            self.capture(key)
        _log.info("%d graphs captured in %.1f s", len(self._graphs), time.perf_counter() - began_s)

    def key(self, batch: StepBatch) -> GraphKey | None:
        """That of a step in which all sequences have the same number of rows; None where there can be none."""
        slices = batch.slices
        queries = len(slices[0].token_ids)
        if {len(part.token_ids) for part in slices} != {queries}:
            return None
        return self._buckets.key(len(slices), queries, max([part.start for part in slices]) + queries)

    def run(self, key: GraphKey, arrays: StepArrays) -> torch.Tensor | None:
        """Logits `[rows of arrays, vocab]`; they hold until the next step is queued. None where there is no graph to be
        had, and nothing was queued."""
        captured = self._graphs.get(key) or self._late(key)
        if captured is None:
            return None
        self._memory.write(key, arrays)
        captured.replay()
        return captured.logits[: len(arrays.token_ids)]

    def _late(self, key: GraphKey) -> _Captured | None:
        if key in self._refused:
            return None
        try:
            self.capture(key)
        except SpliceError as error:
            self._runtime.settle()  # one that is lost says so: what failed then was no capture
            self._refused.add(key)
            _log.warning("steps of %s are launched kernel by kernel from now on: %s", key, error)
        return self._graphs.get(key)
