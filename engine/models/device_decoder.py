"""A decoder on a GPU: steps in which everybody decodes are replayed graphs, all others are launched one by one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch

from engine.blocks.kv_cache import KVMemory
from engine.config import MAX_SCORED_TOKENS
from engine.device.buckets import Buckets
from engine.device.captured_steps import CapturedSteps
from engine.device.device_logits import DeviceLogits
from engine.device.draw_memory import DrawMemory
from engine.device.guard import device_guard, start_guard
from engine.device.kv_memory import DeviceKVCache
from engine.device.memory_budget import MemoryNeeds, kv_bytes, measure_needs
from engine.device.plan_memory import PlanMemory
from engine.device.runtime import DeviceRuntime
from engine.models.decoder import Decoder
from engine.ops.cuda.library import Library
from engine.spec import ModelSpec
from engine.steps.batch import SequenceSlice, StepBatch
from engine.steps.peer_rows import PeerRows
from engine.steps.step_arrays import StepArrays
from engine.steps.step_plan import StepBounds, StepPlan
from wire.kv_layout import KVLayout

_LESS_CACHE = (
    "leave more beside the KV cache, by a lower --gpu-memory-utilization or --kv-cache-memory, lower --max-num-seqs, "
    "or capture no graphs, by --enforce-eager"
)
_LESS_STEP = "lower --max-num-batched-tokens or --max-num-seqs, or use a smaller or quantised model, or a free GPU"


class DeviceDecoder:
    """See `CausalLM` and `PushingModel`. A row has the same bits whichever way its step is launched."""

    def __init__(
        self, decoder: Decoder, library: Library, runtime: DeviceRuntime, buckets: Buckets | None, max_num_seqs: int
    ) -> None:
        """`decoder`'s weights are on the device of `runtime`, its operations those of `library`. Without `buckets`
        nothing is captured. `max_num_seqs`: most sequences of a step."""
        self._decoder = decoder
        most_rows = 1 if buckets is None else buckets.queries[-1]
        self._max_num_seqs = max_num_seqs
        self._draws = DrawMemory(runtime, library, max_num_seqs * most_rows)
        self._plans = PlanMemory(runtime)
        self._runtime = runtime
        self._buckets = buckets
        self._block_tokens = 0
        self._kv_cache: torch.Tensor | None = None
        self._captured: CapturedSteps | None = None

    @property
    def spec(self) -> ModelSpec:
        """See `CausalLM.spec`."""
        return self._decoder.spec

    @property
    def answer_is_apart(self) -> bool:
        """See `CausalLM.answer_is_apart`: kernels of a device compute every row alike (`LatentOps`)."""
        return False

    @property
    def runs_ahead(self) -> bool:
        """See `CausalLM.runs_ahead`."""
        return True

    @property
    def pushes(self) -> bool:
        """See `PushingModel.pushes`."""
        return self._decoder.pushes

    def record(self) -> int:
        """See `PushingModel.record`."""
        return self._runtime.record()

    @property
    def captured(self) -> CapturedSteps | None:
        """The graphs; None before the cache is bound, and where nothing is captured."""
        return self._captured

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        """See `CausalLM.kv_layout`."""
        return self._decoder.kv_layout(block_tokens, kv_dtype)

    def bind_kv_cache(self, kv_cache: KVMemory) -> None:
        """See `CausalLM.bind_kv_cache`. Captures the common graphs: they name the cache's addresses. Raises SpliceError
        where there is no memory left for them."""
        if not isinstance(kv_cache, DeviceKVCache):
            raise TypeError(f"the KV cache is a {type(kv_cache).__name__}, expected one in device memory")
        self._block_tokens = kv_cache.layout.block_tokens
        self._kv_cache = kv_cache.elements()
        if self._buckets is None:
            return
        with torch.inference_mode(), self._starting("capturing graphs", _LESS_CACHE):
            self._captured = CapturedSteps(self._runtime, self._buckets, self._block_tokens, self._compute)
            self._captured.capture_common()

    @torch.inference_mode()
    def memory_needs(self, block_tokens: int, max_num_batched_tokens: int) -> MemoryNeeds:
        """What everything but the KV cache takes, found by trying, before the cache is bound. Raises SpliceError where
        the GPU is too small for that alone."""
        cache = DeviceKVCache.zeros(self.kv_layout(block_tokens, "auto"), 1, self._runtime.device)
        self._block_tokens, self._kv_cache = block_tokens, cache.elements()
        doing = f"trying a step of {max_num_batched_tokens} tokens and the largest graphs"
        try:
            with self._starting(doing, _LESS_STEP):
                return self._tried(self._largest_step(max_num_batched_tokens))
        finally:
            self._kv_cache = None
            self._runtime.forget_captures()

    def kv_bytes(self, block_tokens: int, max_num_batched_tokens: int, utilization: float) -> int:
        """What is left for the KV cache where the share `utilization` of the GPU's memory may be taken. Raises
        SpliceError where nothing is."""
        needs = self.memory_needs(block_tokens, max_num_batched_tokens)
        return kv_bytes(self._runtime.total_bytes(), needs, utilization)

    def _tried(self, largest: tuple[SequenceSlice, ...]) -> MemoryNeeds:
        trial = (
            CapturedSteps(self._runtime, self._buckets, self._block_tokens, self._compute) if self._buckets else None
        )
        return measure_needs(
            self._runtime,
            lambda: self._launched(largest).wait(),
            trial.capture if trial is not None else lambda _: None,
            self._buckets.all() if self._buckets is not None else (),
        )

    def _largest_step(self, max_num_batched_tokens: int) -> tuple[SequenceSlice, ...]:
        """None needs more memory: all but one of the sequences decode at the end of the longest context, beside as many
        tokens of prompts as a step takes, of which as many want their logits as ever do."""
        singles = min(self._max_num_seqs - 1, max_num_batched_tokens - 1)
        slices = [self._at_the_end(1)] * singles
        left = max_num_batched_tokens - singles
        while left:
            scored = not slices[singles:]
            rows = min(left, self._decoder.max_len, MAX_SCORED_TOKENS if scored else left)
            slices.append(self._at_the_end(rows, wants_all_logits=scored))
            left -= rows
        return tuple(slices)

    def _at_the_end(self, rows: int, *, wants_all_logits: bool = False) -> SequenceSlice:
        longest = self._decoder.max_len
        blocks = [0] * -(-longest // self._block_tokens)
        return SequenceSlice([0] * rows, longest - rows, blocks, True, wants_all_logits)

    def _starting(self, doing: str, remedy: str) -> AbstractContextManager[None]:
        return start_guard(self._runtime, doing, remedy, "gpu_memory_utilization")

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> DeviceLogits:
        """See `CausalLM.forward`. Raises DeviceLost where the device is of no more use."""
        with device_guard(self._runtime, "computing a step"):
            return self._queued(batch)

    def _queued(self, batch: StepBatch) -> DeviceLogits:
        slices = batch.slices
        stays = all(part.peer is None for part in slices)  # graphs store rows here alone
        key = self._captured.key(batch) if self._captured is not None and slices and stays else None
        if self._captured is not None and key is not None:
            logits = self._captured.run(key, StepArrays.of(batch, self._block_tokens))
            if logits is not None:
                return DeviceLogits(self._draws, _wanted(logits, slices, key.queries))
        return self._launched(slices)

    def _launched(self, slices: tuple[SequenceSlice, ...]) -> DeviceLogits:
        """Those that decode first: attention takes them another way (see `StepBounds.leading_singles`). Logits come in
        the order of `slices`."""
        order = sorted(range(len(slices)), key=lambda index: len(slices[index].token_ids) != 1)
        batch = StepBatch(tuple(slices[index] for index in order))
        arrays = StepArrays.of(batch, self._block_tokens)
        if order != list(range(len(order))):
            ends = np.cumsum([part.num_logits for part in batch.slices])
            rows = {
                index: arrays.logit_rows[end - slices[index].num_logits : end]
                for index, end in zip(order, ends, strict=True)
            }
            arrays = replace(arrays, logit_rows=np.concatenate([rows[index] for index in range(len(slices))]))
        plan = self._plans.plan(arrays, StepBounds.of(batch), PeerRows.of(batch, self._block_tokens))
        return DeviceLogits(self._draws, self._compute(plan))

    def _compute(self, plan: StepPlan) -> torch.Tensor:
        assert self._kv_cache is not None  # noqa: S101 - the engine binds it before the first step
        token_ids = self._draws.resolved(plan.token_ids)
        return self._decoder.run(replace(plan, token_ids=token_ids), self._kv_cache)


def _wanted(logits: torch.Tensor, slices: tuple[SequenceSlice, ...], queries: int) -> torch.Tensor:
    """Of a graph's logits, which are those of all rows."""
    if all(part.wants_all_logits or (queries == 1 and part.wants_logits) for part in slices):
        return logits
    ends = [(index + 1) * queries for index in range(len(slices))]
    return logits[[row for end, part in zip(ends, slices, strict=True) for row in range(end - part.num_logits, end)]]
