"""The first steps of an engine, before anybody waits: they say what later ones will cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine.config import EngineConfig
from engine.scheduling.step_cost import StepCost, StepWork
from engine.steps.batch import SequenceSlice, StepBatch

_SHORT_MS = 15.0
"""Shorter steps are measured twice: whatever happens only once is not what a step costs."""
_CONTEXT_TOKENS = 512


def measure_cost(forward: Callable[[StepBatch], object], config: EngineConfig, clock: Callable[[], float]) -> StepCost:
    """Runs a few small steps on block 0, which must be free, and fits the prices to what they took.

    `clock` in seconds. What the steps write is of no meaning; all block tables name the one block, so that no more
    memory is touched than that.
    """
    samples: list[tuple[StepWork, float]] = []
    for batch in _batches(config):
        took_ms = _run_ms(forward, batch, clock)
        if took_ms < _SHORT_MS:
            took_ms = min(took_ms, _run_ms(forward, batch, clock))
        samples.append((_work_of(batch), took_ms))
        if took_ms > config.max_step_ms:  # a model of any size is ready soon
            break
    return StepCost.fitted(samples)


def _batches(config: EngineConfig) -> Iterator[StepBatch]:
    """One token, several sequences of one, a chunk, and a chunk behind a long context."""
    size, longest = config.block_tokens, config.max_model_len
    chunk, rows = min(size, longest), min(8, config.max_num_seqs)
    context = max(0, min(_CONTEXT_TOKENS, longest - chunk) // size * size)
    yield StepBatch((_slice(1, 0, size, wants_logits=True),))
    yield StepBatch(tuple(_slice(1, 0, size, wants_logits=True) for _ in range(rows)))
    yield StepBatch((_slice(chunk, 0, size, wants_logits=False),))
    yield StepBatch((_slice(max(1, chunk // 2), context, size, wants_logits=False),))


def _slice(num_tokens: int, start: int, block_tokens: int, *, wants_logits: bool) -> SequenceSlice:
    num_blocks = -(-(start + num_tokens) // block_tokens)
    return SequenceSlice([0] * num_tokens, start, [0] * num_blocks, wants_logits)


def _run_ms(forward: Callable[[StepBatch], object], batch: StepBatch, clock: Callable[[], float]) -> float:
    began_s = clock()
    forward(batch)
    return (clock() - began_s) * 1e3


def _work_of(batch: StepBatch) -> StepWork:
    lengths = [(len(part.token_ids), part.start) for part in batch.slices]
    pairs = sum(length * start + length * (length + 1) // 2 for length, start in lengths)
    return StepWork(sum(length for length, _ in lengths), pairs, sum(part.num_logits for part in batch.slices))
