"""A model that computes as a device does: at once in the order of the queue, while the host learns of it later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.sampling.sampler import DrawnToken, SamplingRow, sample
from engine.sampling.step_logits import HostLogits
from engine.steps.batch import SequenceSlice, StepBatch


class AheadModel:
    """Another model, made to run ahead. `calls` are the launches of steps and the waits for their tokens."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.spec, self.kv_layout, self.bind_kv_cache = model.spec, model.kv_layout, model.bind_kv_cache
        self.answer_is_apart, self.runs_ahead = model.answer_is_apart, True
        self.calls: list[str] = []
        self._drawn: list[DrawnToken | Exception] = []

    @property
    def batches(self) -> list[StepBatch]:
        return self._model.batches

    def forward(self, batch: StepBatch) -> AheadLogits:
        self.calls.append("launch")
        known = StepBatch(tuple(self._known(part) for part in batch.slices))
        return AheadLogits(self, self._model.forward(known))

    def _known(self, part: SequenceSlice) -> SequenceSlice:
        if part.token_ids[-1] >= 0:
            return part
        drawn = self._drawn[-1 - part.token_ids[-1]]
        assert isinstance(drawn, DrawnToken), "a token that could not be drawn"
        return msgspec.structs.replace(part, token_ids=[*part.token_ids[:-1], drawn.token])


class AheadLogits(HostLogits):
    def __init__(self, model: AheadModel, array: NDArray[np.float32]) -> None:
        super().__init__(array)
        self._model = model

    def start_draw(self, places: Sequence[int], rows: Sequence[SamplingRow]) -> AheadDraw:
        assert all(row.is_plain for row in rows)
        self._model._drawn = sample(self.host(list(places)), rows) if rows else []
        return AheadDraw(self._model)


class AheadDraw:
    def __init__(self, model: AheadModel) -> None:
        self._model = model
        self._drawn = model._drawn

    def wait(self) -> list[DrawnToken | Exception]:
        self._model.calls.append("wait")
        return self._drawn
