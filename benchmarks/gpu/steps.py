"""Whole decode steps of a model, against the time its bytes take at the measured copy bandwidth.

Weights are random, of a real model's shapes. A step is what the engine launches: one copy of its arrays, one replayed
graph. Steps follow one another without waiting, as the engine's do, and the host's part of each is measured beside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.device.kv_memory import DeviceKVCache
from engine.models.device_decoder import DeviceDecoder
from engine.rope_spec import RopeSpec
from engine.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from engine.steps.batch import SequenceSlice, StepBatch
from wire.kv_layout import KVLayout

BLOCK_TOKENS = 32
_ROUNDS, _STEPS = 5, 20
LLAMA_8B = ModelSpec(
    "llama", 4096, 128256, 131072, 1e-5,
    (LayerSpec(AttentionSpec(32, 8, 128, RopeSpec(500000.0), scale=128**-0.5), MlpSpec(14336)),) * 32,
    tie_embeddings=False,
)  # fmt: skip
"""Llama 3.1 8B, without the scaling of its rope, which costs nothing."""
SIZES = ((1, 1024), (8, 1024), (64, 1024), (256, 1024), (1, 32768))
"""(sequences, positions of each)"""


@dataclass(frozen=True, slots=True)
class StepTime:
    """A decode step of so many sequences. `floor_bytes`: what it cannot but move; `host_seconds`: of queueing it."""

    name: str
    seconds: float
    host_seconds: float
    floor_bytes: int


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
        """See `Weights.take_matrix`."""
        return self.take(name, shape)


def floor_bytes(spec: ModelSpec, layout: KVLayout, weight_bytes: int, sequences: int, context: int) -> int:
    """Of a decode step: all weights but the rows of the embedding that nobody asks for, and the keys and values of
    every position, read once."""
    table = 2 * spec.vocab_size * spec.hidden_size
    read = weight_bytes - (0 if spec.tie_embeddings else table)
    return read + sequences * context * layout.block_bytes // layout.block_tokens


def bind(model: DeviceDecoder, device: torch.device, sequences: int, context: int) -> None:
    """To a cache of random keys and values, large enough for so many sequences."""
    blocks = sequences * -(-context // BLOCK_TOKENS)
    cache = DeviceKVCache.zeros(model.kv_layout(BLOCK_TOKENS, "auto"), blocks, device)
    cache.elements().normal_()
    model.bind_kv_cache(cache)


def decode_batch(sequences: int, context: int) -> StepBatch:
    """Each computes its position `context`, the last; blocks lie scattered."""
    each = -(-context // BLOCK_TOKENS)
    order = torch.randperm(sequences * each, generator=torch.Generator().manual_seed(0)).view(sequences, each).tolist()
    return StepBatch(tuple(SequenceSlice([row % 100], context - 1, order[row], True) for row in range(sequences)))


def decode_time(
    model: DeviceDecoder, batch: StepBatch, synchronise: Callable[[], None], rounds: int = _ROUNDS, steps: int = _STEPS
) -> tuple[float, float]:
    """Seconds of a step among many, and those the host took to queue it; medians."""
    model.forward(batch)
    synchronise()
    whole: list[float] = []
    queued: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(steps):
            model.forward(batch)
        queued.append((time.perf_counter() - began) / steps)
        synchronise()
        whole.append((time.perf_counter() - began) / steps)
    return statistics.median(whole), statistics.median(queued)


def measure(spec: ModelSpec = LLAMA_8B, sizes: Sequence[tuple[int, int]] = SIZES) -> list[StepTime]:
    """Of one model on the current GPU; builds it first."""
    from engine.device.buckets import Buckets  # noqa: PLC0415
    from engine.device.cuda_runtime import CudaRuntime  # noqa: PLC0415
    from engine.models.decoder import Decoder  # noqa: PLC0415
    from engine.ops import reference  # noqa: PLC0415
    from engine.ops.cuda.candidates import best_product, candidates  # noqa: PLC0415
    from engine.ops.cuda.library import Library  # noqa: PLC0415
    from engine.ops.features import features_of  # noqa: PLC0415
    from engine.ops.registry import choose  # noqa: PLC0415

    library, runtime = Library(), CudaRuntime()
    product = best_product(library, runtime.capability)
    ops = choose([*reference.CANDIDATES, *candidates(library, product)], torch.bfloat16, features_of(spec))
    weights = DrawnWeights(runtime.device)
    longest = max(context for _, context in sizes)
    decoder = Decoder(spec, ops, weights, longest, "bfloat16", runtime.device)
    times: list[StepTime] = []
    for sequences, context in sizes:
        buckets = Buckets((sequences,), (context,))
        model = DeviceDecoder(decoder, library, runtime, buckets, sequences)
        bind(model, runtime.device, sequences, context)
        seconds, host = decode_time(model, decode_batch(sequences, context), torch.cuda.synchronize)
        floor = floor_bytes(spec, model.kv_layout(BLOCK_TOKENS, "auto"), weights.num_bytes, sequences, context)
        name = f"{spec.architecture} decode step, {sequences} sequences at {context}"
        times.append(StepTime(name, seconds, host, floor))
        runtime.forget_captures()
        del model
        torch.cuda.empty_cache()
    return times


def as_data(times: Sequence[StepTime]) -> list[dict[str, Any]]:
    """For the result file."""
    return [{name: getattr(each, name) for name in StepTime.__slots__} for each in times]
