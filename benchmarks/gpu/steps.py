"""Whole decode steps of a model, against the time its bytes take at the measured copy bandwidth.

Weights are random, of a real model's shapes. A step is what the engine launches: one copy of its arrays, one replayed
graph. Steps follow one another without waiting, as the engine's do, and the host's part of each is measured beside.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.model import BLOCK_TOKENS, LLAMA_8B, WeightFormat, build
from engine.device.buckets import Buckets
from engine.device.kv_memory import DeviceKVCache
from engine.models.device_decoder import DeviceDecoder
from engine.spec import ModelSpec
from engine.steps.batch import SequenceSlice, StepBatch
from engine.tuning.decision import Mode
from wire.kv_layout import KVLayout

_ROUNDS, _STEPS = 5, 20
_AHEAD = 2
"""So many steps are queued before the host waits for the device, which has the arrays of no more (`StepMemory`)."""
SIZES = ((1, 1024), (8, 1024), (64, 1024), (256, 1024), (1, 32768))
"""(sequences, positions of each)"""


@dataclass(frozen=True, slots=True)
class StepTime:
    """A decode step of so many sequences. `floor_bytes`: what it cannot but move; `host_seconds`: of queueing it."""

    name: str
    seconds: float
    host_seconds: float
    floor_bytes: int
    sequences: int
    context: int
    mode: Mode
    precision: WeightFormat


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
    """Seconds of a step among many, and those the host took to queue one while the device was not waited for;
    medians."""
    model.forward(batch)
    synchronise()
    whole: list[float] = []
    queued: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        for step in range(steps):
            model.forward(batch)
            if step + 1 == _AHEAD:
                queued.append((time.perf_counter() - began) / _AHEAD)
        synchronise()
        whole.append((time.perf_counter() - began) / steps)
    return statistics.median(whole), statistics.median(queued)


def measure(mode: Mode, weights: WeightFormat, tactics: Path) -> list[dict[str, Any]]:
    """A `StepTime` each, as plain data."""
    times: list[StepTime] = []
    model = build(mode, weights, tactics)
    for sequences, context in SIZES:
        decoder = DeviceDecoder(
            model.decoder, model.library, model.runtime, Buckets((sequences,), (context,)), sequences
        )
        bind(decoder, model.runtime.device, sequences, context)
        seconds, host = decode_time(decoder, decode_batch(sequences, context), torch.cuda.synchronize)
        layout = decoder.kv_layout(BLOCK_TOKENS, "auto")
        floor = floor_bytes(LLAMA_8B, layout, model.weight_bytes, sequences, context)
        name = f"8B {weights} decode step, {mode}, {sequences} sequences at {context}"
        times.append(StepTime(name, seconds, host, floor, sequences, context, mode, weights))
        model.runtime.forget_captures()
        del decoder
        gc.collect()  # graphs and their decoder hold each other, and with them the cache
        torch.cuda.empty_cache()
    return [asdict(each) for each in times]
