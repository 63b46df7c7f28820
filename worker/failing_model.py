"""A model whose device fails, for tests: what an engine and a cluster make of it can be seen without a GPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.blocks.kv_cache import KVMemory
from engine.device.device_lost import DeviceLost
from engine.models.causal_lm import CausalLM
from engine.sampling.step_logits import StepLogits
from engine.spec import ModelSpec
from engine.steps.batch import StepBatch
from kvtransfer.faults import DEVICE_LOST, FaultPlan
from wire.kv_layout import KVLayout


class FailingModel:
    """See `CausalLM`. Every step is an opportunity of the fault point `engine.device_lost`, those that warm an engine
    up included. Once it fired, no step is computed any more, as with a device that is lost."""

    def __init__(self, model: CausalLM, faults: FaultPlan) -> None:
        self._model = model
        self._faults = faults
        self._is_lost = False

    @property
    def spec(self) -> ModelSpec:
        """See `CausalLM.spec`."""
        return self._model.spec

    @property
    def answer_is_apart(self) -> bool:
        """See `CausalLM.answer_is_apart`."""
        return self._model.answer_is_apart

    @property
    def runs_ahead(self) -> bool:
        """See `CausalLM.runs_ahead`."""
        return self._model.runs_ahead

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        """See `CausalLM.kv_layout`."""
        return self._model.kv_layout(block_tokens, kv_dtype)

    def bind_kv_cache(self, kv_cache: KVMemory) -> None:
        """See `CausalLM.bind_kv_cache`."""
        self._model.bind_kv_cache(kv_cache)

    def forward(self, batch: StepBatch) -> npt.NDArray[np.float32] | StepLogits:
        """See `CausalLM.forward`. Raises DeviceLost from when the fault fires."""
        self._is_lost = self._is_lost or self._faults.fires(DEVICE_LOST)
        if self._is_lost:
            raise DeviceLost("the device is lost to this process: a fault point that was asked for")
        return self._model.forward(batch)
