"""Tokens from logits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.cases.case import VOCAB, Call, Case, drawn
from engine.ops.cuda.draw import DrawChoice, draw_columns, draw_on_device
from engine.ops.cuda.library import Library

_CHOICES = {
    "greedy": DrawChoice(0.0, 1, 1),
    "plain": DrawChoice(1.0, 1, 1),
    "top_k 50": DrawChoice(1.0, 1, 1, top_k=50),
    "top_p 0.9": DrawChoice(1.0, 1, 1, top_p=0.9),
}


def cases() -> Iterator[Case]:
    for (name, choice), rows in itertools.product(_CHOICES.items(), (1, 64)):
        make = partial(_draws, choice, rows)
        yield Case(f"draw, {name}, {rows} rows", "draw", 4 * rows * VOCAB, rows * VOCAB, make)


def _draws(choice: DrawChoice, rows: int, library: Library) -> list[Call]:
    columns = draw_columns([choice] * rows).cuda()
    logits = [drawn(rows, VOCAB, dtype=torch.float32) * 3 for _ in range(2)]
    return [partial(draw_on_device, library, each, columns) for each in logits]
