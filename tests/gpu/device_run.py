"""Feeding models sequences, step by step."""

from __future__ import annotations

import numpy as np

from engine.device.buckets import Buckets
from engine.steps.batch import SequenceSlice, StepBatch

BUCKETS = Buckets((1, 2, 4), (64, 256))
PROMPTS = [[(7 * i * i + 3 * i + seed) % 300 for i in range(length)] for seed, length in ((1, 40), (2, 5), (3, 33))]


class Run:
    """Feeds a model sequences, and keeps the logits of their last tokens."""

    def __init__(self, model, blocks_of_one: int = 4) -> None:
        self.model = model
        self.blocks_of_one = blocks_of_one
        self.lengths: dict[int, int] = {}

    def slice(self, sequence: int, tokens: list[int], *, all_logits: bool = False) -> SequenceSlice:
        start = self.lengths.get(sequence, 0)
        self.lengths[sequence] = start + len(tokens)
        first = 1 + sequence * self.blocks_of_one
        table = list(range(first, first + -(-(start + len(tokens)) // 32)))
        return SequenceSlice(tokens, start, table, True, all_logits)

    def step(self, parts: list[tuple[int, list[int]]], **options: bool) -> np.ndarray:
        logits = self.model.forward(StepBatch(tuple(self.slice(*part, **options) for part in parts)))
        return logits if isinstance(logits, np.ndarray) else logits.host(slice(None)).copy()


def answers(model, steps: int = 2) -> list[np.ndarray]:
    """Three prompts at once, then a few tokens of each: logits `[3, vocab]` a step."""
    run = Run(model)
    found = [run.step(list(enumerate(PROMPTS)))]
    for step in range(steps):
        found.append(run.step([(sequence, [40 + step + sequence]) for sequence in range(3)]))
    return found


def assert_one_set_of_bits(make) -> None:
    """`make(buckets)` gives the model anew. A sequence has the same logits launched, replayed, alone and in company."""
    together = answers(make(BUCKETS))
    for launched, replayed in zip(answers(make(None)), together, strict=True):
        np.testing.assert_array_equal(launched, replayed)
    run = Run(make(BUCKETS))
    cut = len(PROMPTS[0]) // 3
    run.step([(0, PROMPTS[0][:cut])])
    alone = [run.step([(0, PROMPTS[0][cut:])]), run.step([(0, [40])]), run.step([(0, [41])])]
    for row, rows in zip(alone, together, strict=True):
        np.testing.assert_array_equal(row[0], rows[0])
