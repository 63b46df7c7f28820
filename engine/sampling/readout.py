"""What the logits of one step say about each request in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.sampling.sampler import DrawnToken, SamplingRow, not_finite, token_logprobs
from engine.sampling.step_logits import StepLogits
from engine.scheduling.request import Request
from engine.scheduling.schedule_plan import ScheduledRequest
from wire.sampling import TokenLogprobs


class Readout(msgspec.Struct, frozen=True):
    """Of one part of a step."""

    part: ScheduledRequest
    drawn: DrawnToken | None = None
    """The next token, where the part completes."""
    options: TokenLogprobs | None = None
    """The likeliest next tokens, where the part completes and belongs to a beam search."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the prompt tokens behind the positions `part.scored`."""
    error: Exception | None = None
    """Ends the request; nothing else holds then."""


def read_logits(
    parts: Sequence[ScheduledRequest],
    logits: StepLogits,
    row_of: Callable[[Request], SamplingRow],
    num_options: Callable[[Request], int],
) -> list[Readout]:
    """`logits` `[sum of num_logits, vocab]`, the parts' rows one after another. One `Readout` per part.

    `num_options`: how many likeliest tokens a beam search wants to see. The step has been computed when this returns.
    """
    ends = list(accumulate(part.num_logits for part in parts))
    draws = [(end - 1, part) for part, end in zip(parts, ends, strict=True) if part.completes and not _is_beam(part)]
    rows = [row_of(part.request) for _, part in draws]
    if not draws:
        logits.wait()  # whoever is told of computed blocks reads them past the device's queue
    drawn = iter(logits.draw([row for row, _ in draws], rows) if draws else ())
    readouts = []
    for part, end in zip(parts, ends, strict=True):
        if not part.completes:
            readout = Readout(part)
        elif _is_beam(part):
            readout = _with_options(Readout(part), logits.host(slice(end - 1, end)), num_options(part.request))
        else:
            token = next(drawn)
            readout = Readout(part, error=token) if isinstance(token, Exception) else Readout(part, token)
        if part.scored and readout.error is None:
            readout = _with_scores(readout, logits.host(slice(end - part.num_logits, end)))
        readouts.append(readout)
    return readouts


def _is_beam(part: ScheduledRequest) -> bool:
    return part.request.sampling.beam is not None


def _with_options(readout: Readout, last: NDArray[np.float32], count: int) -> Readout:
    [options] = token_logprobs(last, [0], count)
    if options is None:
        return msgspec.structs.replace(readout, error=not_finite(readout.part.request.num_tokens))
    return msgspec.structs.replace(readout, options=options)


def _with_scores(readout: Readout, logits: NDArray[np.float32]) -> Readout:
    request, scored = readout.part.request, readout.part.scored
    first = scored.start - request.num_computed_tokens
    own = logits[first : first + len(scored)]
    behind = request.tokens[scored.start + 1 : scored.stop + 1]
    found = token_logprobs(own, behind, request.sampling.prompt_logprobs or 0)
    for position, one in zip(scored, found, strict=True):
        if one is None:
            return msgspec.structs.replace(readout, error=not_finite(position))
    return msgspec.structs.replace(readout, prompt_logprobs=tuple(one for one in found if one is not None))
