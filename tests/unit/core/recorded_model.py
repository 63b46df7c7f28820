"""A model whose logits are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.steps.batch import StepBatch


class RecordedModel:
    """Another model; `logits` are those of every request's last tokens, by prompt length and position, as often as they
    were computed."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.spec, self.kv_layout, self.bind_kv_cache = model.spec, model.kv_layout, model.bind_kv_cache
        self.answer_is_apart, self.runs_ahead = model.answer_is_apart, False
        self.logits: dict[tuple[int, int], list[npt.NDArray[np.float32]]] = {}

    def forward(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self._model.forward(batch)
        wanted = [part for part in batch.slices if part.wants_logits]
        for part, row in zip(wanted, logits, strict=True):
            self.logits.setdefault((part.num_prompt_tokens, part.start + len(part.token_ids)), []).append(row.copy())
        return logits
