"""Tokens drawn where the logits lie: what comes back to the host is a number a row, not a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.ops.cuda.draw import DrawChoice, draw_tokens
from engine.ops.cuda.library import Library
from engine.sampling.sampler import DrawnToken, SamplingRow, not_finite, sample

_NOT_FINITE = -1


class DeviceLogits:
    """See `StepLogits`. They hold until the next step is queued."""

    def __init__(self, library: Library, logits: torch.Tensor) -> None:
        """`logits` `[rows, vocab]` float32 on the library's device."""
        self._library = library
        self._logits = logits

    @property
    def shape(self) -> tuple[int, int]:
        """See `StepLogits.shape`."""
        rows, vocab = self._logits.shape
        return rows, vocab

    def wait(self) -> None:
        """See `StepLogits.wait`."""
        self._logits[:1, :1].cpu()

    def host(self, rows: slice | Sequence[int]) -> NDArray[np.float32]:
        """See `StepLogits.host`."""
        chosen = rows if isinstance(rows, slice) else list(rows)
        found: NDArray[np.float32] = self._logits[chosen].cpu().numpy()
        return found

    def draw(self, places: Sequence[int], rows: Sequence[SamplingRow]) -> list[DrawnToken | Exception]:
        """See `StepLogits.draw`. Rows that ask for more than the kernel does are drawn from on the host: the same
        tokens, later."""
        here = [index for index, row in enumerate(rows) if is_plain(row)]
        away = [index for index, row in enumerate(rows) if not is_plain(row)]
        drawn: dict[int, DrawnToken | Exception] = {}
        if here:
            own = self._logits if len(here) == len(self._logits) else self._logits[[places[index] for index in here]]
            tokens = draw_tokens(self._library, own, [choice_of(rows[index]) for index in here]).tolist()
            for index, token in zip(here, tokens, strict=True):
                failed = token == _NOT_FINITE
                drawn[index] = not_finite(len(rows[index].tokens)) if failed else DrawnToken(token, None)
        if away:
            logits = self.host([places[index] for index in away])
            drawn.update(zip(away, sample(logits, [rows[index] for index in away]), strict=True))
        return [drawn[index] for index in range(len(rows))]


def is_plain(row: SamplingRow) -> bool:
    """Whether the draw is one the kernel makes: temperature, min_p, top_k and top_p, and no more than the token."""
    params = row.params
    filters = params.is_greedy or params.typical_p == 1.0
    return params.logprobs is None and filters and row.takes_logits_as_they_are


def choice_of(row: SamplingRow) -> DrawChoice:
    """Of a plain row."""
    params = row.params
    return DrawChoice(
        temperature=params.temperature,
        seed=params.seed,
        position=len(row.tokens),
        choice=params.choice,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
    )
