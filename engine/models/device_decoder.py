"""A decoder on a GPU: steps in which everybody decodes are replayed graphs, all others are launched one by one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from engine.blocks.kv_cache import KVMemory
from engine.device.buckets import Buckets
from engine.device.captured_steps import CapturedSteps
from engine.device.device_logits import DeviceLogits
from engine.device.draw_memory import DrawMemory
from engine.device.guard import device_guard, start_guard
from engine.device.kv_memory import DeviceKVCache
from engine.device.memory_budget import MemoryNeeds, kv_bytes, measure_needs
from engine.device.runtime import DeviceRuntime
from engine.models.decoder import Decoder
from engine.ops.cuda.library import Library
from engine.spec import ModelSpec
from engine.steps.batch import SequenceSlice, StepBatch
from engine.steps.step_arrays import StepArrays
from engine.steps.step_plan import StepPlan
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
        self._draws = DrawMemory(runtime, library, max_num_seqs * most_rows)
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
        longest = self._decoder.max_len
        rows = min(max_num_batched_tokens, longest)
        largest = SequenceSlice([0] * rows, longest - rows, [0] * -(-longest // block_tokens), True)
        try:
            with self._starting(f"trying a step of {rows} tokens and the largest graphs", _LESS_STEP):
                return self._tried(largest)
        finally:
            self._kv_cache = None
            self._runtime.forget_captures()

    def kv_bytes(self, block_tokens: int, max_num_batched_tokens: int, utilization: float) -> int:
        """What is left for the KV cache where the share `utilization` of the GPU's memory may be taken. Raises
        SpliceError where nothing is."""
        needs = self.memory_needs(block_tokens, max_num_batched_tokens)
        return kv_bytes(self._runtime.total_bytes(), needs, utilization)

    def _tried(self, largest: SequenceSlice) -> MemoryNeeds:
        trial = (
            CapturedSteps(self._runtime, self._buckets, self._block_tokens, self._compute) if self._buckets else None
        )
        return measure_needs(
            self._runtime.reserved_bytes,
            lambda: self._launched((largest,)).wait(),
            trial.capture if trial is not None else lambda _: None,
            self._buckets.common() if self._buckets is not None else (),
        )

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
            ends = [(index + 1) * key.queries for index in range(len(slices))]
            wanted = [row for end, part in zip(ends, slices, strict=True) for row in range(end - part.num_logits, end)]
            return DeviceLogits(self._draws, logits if len(wanted) == len(logits) else logits[wanted])
        return self._launched(slices)

    def _launched(self, slices: tuple[SequenceSlice, ...]) -> DeviceLogits:
        """Those that decode first: attention takes them another way (see `StepBounds.leading_singles`)."""
        order = sorted(range(len(slices)), key=lambda index: len(slices[index].token_ids) != 1)
        plan = StepPlan.of(StepBatch(tuple(slices[index] for index in order)), self._block_tokens)
        logits = self._compute(plan.on(self._runtime.device))
        rows: dict[int, range] = {}
        for index in order:
            first = sum(map(len, rows.values()))
            rows[index] = range(first, first + slices[index].num_logits)
        wanted = [row for index in range(len(slices)) for row in rows[index]]
        return DeviceLogits(self._draws, logits if wanted == sorted(wanted) else logits[wanted])

    def _compute(self, plan: StepPlan) -> torch.Tensor:
        assert self._kv_cache is not None  # noqa: S101 - the engine binds it before the first step
        token_ids = self._draws.resolved(plan.token_ids)
        return self._decoder.run(replace(plan, token_ids=token_ids), self._kv_cache)
