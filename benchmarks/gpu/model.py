"""Llama 3.1 8B with random weights, as the engine builds a model on this GPU, in either mode."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from engine.rope_spec import RopeSpec
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from engine.tuning.decision import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.device.cuda_runtime import CudaRuntime
    from engine.models.decoder import Decoder
    from engine.ops.cuda.library import Library
    from engine.tuning.operations import TunedOperations
    from engine.tuning.tuner import Tuner

WeightFormat = Literal["bf16", "fp8"]
"""Of the matrices; `fp8`: the projections', with a scale a row."""
BLOCK_TOKENS, MAX_LEN = 32, 32768
TUNED_ROWS = (1, 16, 64, 256, 512, 1024, 8192)
"""Fewer buckets than an engine's own start tries: calls with others take the next larger one's."""
_REPEATS = 7
LLAMA_8B = ModelSpec(
    "llama", 4096, 128256, 131072, 1e-5,
    (LayerSpec(AttentionSpec(32, 8, 128, RopeSpec(500000.0), scale=128**-0.5), MlpSpec(14336)),) * 32,
    tie_embeddings=False,
)  # fmt: skip
"""Llama 3.1 8B, without the scaling of its rope, which costs nothing."""


@dataclass(frozen=True, slots=True)
class Model:
    """What decoders of any batch are made over."""

    decoder: Decoder
    library: Library
    runtime: CudaRuntime
    weight_bytes: int


class DrawnWeights:
    """Normally distributed, scaled so that activations neither grow nor vanish; by order of asking, on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.num_bytes = 0

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """See `Weights.take`."""
        drawn = torch.randn(tuple(shape), device=self._device, dtype=dtype or torch.bfloat16)
        drawn = drawn.mul_(shape[-1] ** -0.5) if len(shape) > 1 else drawn.mul_(0.1).add_(1.0)
        self.num_bytes += drawn.numel() * drawn.element_size()
        return drawn

    def take_matrix(self, name: str, shape: Sequence[int], kinds: frozenset[str]) -> torch.Tensor:
        """See `Weights.take_matrix`. Where FP8 is taken it is counted as what it becomes: a byte, and a scale a row."""
        drawn = self.take(name, shape)
        if "fp8_rows" in kinds:
            self.num_bytes += shape[0] * 4 - drawn.numel()
        return drawn


_kept: dict[tuple[Mode, WeightFormat, Path], Model] = {}
"""The last one that was built."""


def build(mode: Mode, weights: WeightFormat, tactics: Path) -> Model:
    """Kept until another is asked for. `deterministic` is the engine's default, without tuning; `fast` takes what is
    measured to be fastest for each bucket of rows, the findings kept in `tactics`.

    Raises SpliceError where GPU or kernels are missing.
    """
    key = mode, weights, tactics
    if key not in _kept:
        forget()
        _kept[key] = _built(*key)
    return _kept[key]


def forget() -> None:
    """Gives the last one's memory back: a model that is sized by what is free counts it as others'."""
    _kept.clear()
    gc.collect()
    torch.cuda.empty_cache()


def _built(mode: Mode, weights: WeightFormat, tactics: Path) -> Model:
    from engine.device.cuda_runtime import CudaRuntime  # noqa: PLC0415 (the engine, which needs more than torch)
    from engine.models.decoder import Decoder  # noqa: PLC0415
    from engine.ops import reference  # noqa: PLC0415
    from engine.ops.cuda.candidates import Fp8Choice, best_product, candidates  # noqa: PLC0415
    from engine.ops.cuda.fp8_products import rows_that_codes_meet  # noqa: PLC0415
    from engine.ops.cuda.library import Library  # noqa: PLC0415
    from engine.ops.features import features_of  # noqa: PLC0415
    from engine.ops.registry import choose  # noqa: PLC0415
    from engine.tuning.operations import TunedOperations  # noqa: PLC0415

    library, runtime = Library(), CudaRuntime()
    fp8, tuned = None, None
    if mode == "fast":
        tuned = TunedOperations(library, runtime.device, "fast", matrices="fp8" if weights == "fp8" else "bfloat16")
    if weights == "fp8":
        rows = rows_that_codes_meet(library, runtime.capability, wants_bfloat16=False)
        tactics_of_fp8 = None if tuned is None else tuned.fp8
        fp8 = Fp8Choice(runtime.device, rows, quantises=True, tactics=tactics_of_fp8)
    product = best_product(library, runtime.capability)
    offered = [*reference.CANDIDATES, *candidates(library, product, fp8=fp8, keeps_bits=mode != "fast")]
    if tuned is not None:
        offered += tuned.candidates()
    drawn = DrawnWeights(runtime.device)
    ops = choose(offered, torch.bfloat16, features_of(LLAMA_8B))
    decoder = Decoder(LLAMA_8B, ops, drawn, MAX_LEN, "bfloat16", runtime.device)
    if tuned is not None:
        tuned.tune(LLAMA_8B, short_tuner(tuned, library, tactics))
    if tuned is not None or fp8 is not None:
        torch.cuda.empty_cache()
    return Model(decoder, library, runtime, drawn.num_bytes)


def short_tuner(tuned: TunedOperations, library: Library, tactics: Path) -> Tuner:
    """Over few buckets and repeats."""
    from engine.tuning.attempts import AttemptNotes  # noqa: PLC0415 (msgspec)
    from engine.tuning.cache import TacticCache  # noqa: PLC0415
    from engine.tuning.graph_timer import GraphTimer  # noqa: PLC0415
    from engine.tuning.machine import machine_key  # noqa: PLC0415
    from engine.tuning.tuner import Tuner  # noqa: PLC0415

    key = machine_key(library)
    store, notes = TacticCache(tactics, key), AttemptNotes(tactics, key)
    return Tuner(tuned.tunables, GraphTimer(repeats=_REPEATS), store, notes, buckets=TUNED_ROWS)
