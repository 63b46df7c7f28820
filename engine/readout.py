"""What the logits of one step say about each request in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.request import Request
from engine.sampler import DrawnToken, SamplingRow, not_finite, sample, token_logprobs
from engine.schedule_plan import ScheduledRequest
from wire.sampling import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Readout:
    """Of one part of a step."""

    part: ScheduledRequest
    drawn: DrawnToken | None = None
    """The next token, where the part completes."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt tokens behind the positions `part.scored`."""
    error: Exception | None = None
    """Ends the request; nothing else holds then."""


def read_logits(
    parts: Sequence[ScheduledRequest], logits: ArrayLike, row_of: Callable[[Request], SamplingRow]
) -> list[Readout]:
    """`logits` float32 `[sum of num_logits, vocab]`, the parts' rows one after another. One `Readout` per part."""
    array: NDArray[np.float32] = np.asarray(logits)
    ends = np.cumsum([part.num_logits for part in parts]).tolist()
    lasts = [end - 1 for part, end in zip(parts, ends, strict=True) if part.completes]
    rows = [row_of(part.request) for part in parts if part.completes]
    drawn = iter(sample(array if len(lasts) == len(array) else array[lasts], rows) if rows else ())
    readouts = []
    for part, end in zip(parts, ends, strict=True):
        token = next(drawn) if part.completes else None
        if isinstance(token, Exception):
            readouts.append(Readout(part, error=token))
        elif not part.scored:
            readouts.append(Readout(part, token))
        else:
            readouts.append(_with_scores(part, array[end - part.num_logits : end], token))
    return readouts


def _with_scores(part: ScheduledRequest, logits: NDArray[np.float32], token: DrawnToken | None) -> Readout:
    request, scored = part.request, part.scored
    first = scored.start - request.num_computed_tokens
    own = logits[first : first + len(scored)]
    behind = request.tokens[scored.start + 1 : scored.stop + 1]
    found = token_logprobs(own, behind, request.sampling.prompt_logprobs or 0)
    for position, one in zip(scored, found, strict=True):
        if one is None:
            return Readout(part, error=not_finite(position))
    return Readout(part, token, tuple(one for one in found if one is not None))
