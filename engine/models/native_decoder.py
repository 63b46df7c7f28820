"""A decoder whose steps are one native call each; it needs no torch."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from engine.blocks.kv_cache import KVCache, KVMemory
from engine.models.assembly import Assembly
from engine.models.kv_layouts import decoder_kv_layout
from engine.ops.names import Activations
from engine.ops.native_decoder import NativeDecoderCompiler
from engine.ops.native_kernels import KERNELS
from engine.spec import ModelSpec
from engine.steps.batch import StepBatch
from engine.steps.step_arrays import StepArrays
from engine.weights import WeightSource
from wire.kv_layout import KVDtype, KVLayout

Floats = npt.NDArray[np.float32]
_COMPILERS: dict[Activations, NativeDecoderCompiler] = {
    activations: NativeDecoderCompiler(KERNELS, activations) for activations in get_args(Activations)
}


def obstacle(spec: ModelSpec) -> str | None:
    """Why no native step computes this model, in words; None when one does."""
    return _COMPILERS["float32"].obstacle(spec)


class NativeDecoder:
    """See `CausalLM`. Weights stay in the precision they came in; activations are float32, on their way into
    weights perhaps int8 or bfloat16."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightSource,
        max_len: int,
        activations: Activations,
        kv_dtype: KVDtype = "float32",
    ) -> None:
        """For specs without an `obstacle`. `max_len`: positions the rotary table covers, at least the longest sequence
        ever served. `kv_dtype`: what `auto` means to `kv_layout`. Raises SpliceError for weights that are not the
        spec's."""
        self.spec = spec
        self._kv_dtype = kv_dtype
        self._step = _COMPILERS[activations].compile(spec, Assembly(spec, weights, max_len).all())
        self._block_tokens = 0
        self._kv_cache: npt.NDArray[Any] | None = None

    @property
    def answer_is_apart(self) -> bool:
        """See `CausalLM.answer_is_apart`: latents are always attended to absorbed."""
        return False

    @property
    def runs_ahead(self) -> bool:
        """See `CausalLM.runs_ahead`."""
        return False

    def kv_layout(self, block_tokens: int, kv_dtype: str) -> KVLayout:
        """See `CausalLM.kv_layout`."""
        return decoder_kv_layout(self.spec, self._kv_dtype, block_tokens, kv_dtype)

    def bind_kv_cache(self, kv_cache: KVMemory) -> None:
        """See `CausalLM.bind_kv_cache`."""
        if not isinstance(kv_cache, KVCache):
            raise TypeError(f"the KV cache is a {type(kv_cache).__name__}, expected one in memory of the CPU")
        self._block_tokens = kv_cache.layout.block_tokens
        self._kv_cache = kv_cache.elements()

    def forward(self, batch: StepBatch) -> Floats:
        """See `CausalLM.forward`."""
        assert self._kv_cache is not None  # noqa: S101 - the engine binds it before the first step
        return self._step(StepArrays.of(batch, self._block_tokens), self._kv_cache)
