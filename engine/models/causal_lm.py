"""What the engine asks of a model."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engine.blocks.kv_cache import KVMemory
from engine.sampling.step_logits import StepLogits
from engine.spec import ModelSpec
from engine.steps.batch import StepBatch
from wire.kv_layout import KVLayout


class CausalLM(Protocol):
    """A language model over a paged KV cache.

    The logits of a token depend, bit for bit, on the tokens before it in its sequence alone: not on the other slices
    of the batch, nor on how the sequence was cut into steps. Where `answer_is_apart` they depend on the length of
    the request's prompt as well (`SequenceSlice.num_prompt_tokens`).
    """

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def answer_is_apart(self) -> bool:
        """Whether what follows a prompt is computed another way, so that its KV depends on where the prompt ends."""

    @property
    def runs_ahead(self) -> bool:
        """Whether a step may name tokens that are `not_drawn_yet`: `forward` then returns before it has computed, and
        its logits can `start_draw`."""

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        """Layout of one cache block; `kv_dtype` `auto` is what was found to suit the model's
        weights (`kv_layouts.auto_kv_dtype`). Raises SpliceError (bad_setting)."""

    def bind_kv_cache(self, kv_cache: KVMemory) -> None:
        """Once, before the first step: where K and V lie from now on. Its layout came from `kv_layout`.

        Raises TypeError for memory of another kind than the model computes in."""

    def forward(self, batch: StepBatch) -> npt.NDArray[np.float32] | StepLogits:
        """Computes every slice, writing its K and V into the cache.

        Returns `[n, vocab_size]`: `num_logits` rows of each slice, its last ones, in slice order; on a device perhaps
        not computed yet. A row that is not
        finite (damaged weights or KV) is returned as it is: it fails its own request, in the sampler.
        """


@runtime_checkable
class PushingModel(Protocol):
    """A model on a device, which may store rows in a peer's cache besides (`SequenceSlice.peer`)."""

    @property
    def pushes(self) -> bool:
        """Whether its operations can."""

    def record(self) -> int:
        """The driver's own number of an event behind every step launched so far, recorded anew by the next call.

        Raises DeviceLost where the device failed."""
