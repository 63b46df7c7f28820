"""Tokens drawn where the logits lie: what comes back to the host is a number a row, not a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.device.draw_memory import DrawMemory, TokensOnTheWay
from engine.ops.cuda.draw import DrawChoice, packed
from engine.sampling.sampler import DrawnToken, SamplingRow, not_finite, sample

_NOT_FINITE = -1


class DeviceLogits:
    """See `StepLogits`. They hold until the next step is queued."""

    def __init__(self, memory: DrawMemory, logits: torch.Tensor) -> None:
        """`logits` `[rows, vocab]` float32 on the device."""
        self._memory = memory
        self._logits = logits

    @property
    def shape(self) -> tuple[int, int]:
        """See `StepLogits.shape`."""
        rows, vocab = self._logits.shape
        return rows, vocab

    def wait(self) -> None:
        """See `StepLogits.wait`."""
        with self._memory.guard("computing a step"):
            self._memory.settle()

    def host(self, rows: slice | Sequence[int]) -> NDArray[np.float32]:
        """See `StepLogits.host`."""
        chosen = rows if isinstance(rows, slice) else list(rows)
        with self._memory.guard("computing a step"):
            self._memory.settle()  # asleep; a copy would spin
            found: NDArray[np.float32] = self._logits[chosen].cpu().numpy()
        return found

    def draw(self, places: Sequence[int], rows: Sequence[SamplingRow]) -> list[DrawnToken | Exception]:
        """See `StepLogits.draw`. Rows that ask for more than the kernel does are drawn from on the host: the same
        tokens, later."""
        here: list[int] = []
        away: list[int] = []
        for index, row in enumerate(rows):
            (here if row.is_plain else away).append(index)
        drawn: dict[int, DrawnToken | Exception] = {}
        if here:
            plain = self.start_draw([places[index] for index in here], [rows[index] for index in here])
            drawn.update(zip(here, plain.wait(), strict=True))
        if away:
            logits = self.host([places[index] for index in away])
            drawn.update(zip(away, sample(logits, [rows[index] for index in away]), strict=True))
        return [drawn[index] for index in range(len(rows))]

    def start_draw(self, places: Sequence[int], rows: Sequence[SamplingRow]) -> DeviceDraw:
        """Queues the draws of rows that are all plain (`SamplingRow.is_plain`)."""
        positions = [len(row.tokens) for row in rows]
        with self._memory.guard("drawing tokens"):
            own = self._logits if len(places) == len(self._logits) else self._logits[list(places)]
            wanted = [row.packed or _pack(row) for row in rows]
            return DeviceDraw(self._memory.draw(own, wanted, positions), positions)


class DeviceDraw:
    """See `PendingDraw`."""

    def __init__(self, tokens: TokensOnTheWay, positions: Sequence[int]) -> None:
        self._tokens = tokens
        self._positions = positions

    def wait(self) -> list[DrawnToken | Exception]:
        """See `PendingDraw.wait`."""
        return [
            DrawnToken(token, None) if token != _NOT_FINITE else not_finite(position)
            for token, position in zip(self._tokens.wait(), self._positions, strict=True)
        ]


def _pack(row: SamplingRow) -> bytes:
    """Of a plain row; kept by it."""
    params = row.params
    choice = DrawChoice(
        temperature=params.temperature,
        seed=params.seed,
        position=len(row.tokens),
        choice=params.choice,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
    )
    row.packed = packed(choice)
    return row.packed
