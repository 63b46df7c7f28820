"""The decisions of one step, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from engine.blocks.block_copy import BlockCopy
from engine.scheduling.request import Request
from engine.scheduling.step_cost import StepWork
from wire.sampling import FinishReason

_NO_WORK = StepWork(0, 0, 0)
_NOTHING = range(0)


class ScheduledRequest(msgspec.Struct, frozen=True):
    """A request's part of a step: the `num_new_tokens` tokens from `num_computed_tokens` on.

    What follows from where the request stands is found out once: it is asked for again and again in one step.
    """

    request: Request
    num_new_tokens: int
    completes: bool
    """Whether the KV catches up with the tokens, so that the next one can be drawn."""
    scored: range
    """Positions whose logits are wanted for the log probability of the prompt token behind each."""
    num_logits: int
    """Rows of logits wanted: of every token here, of the last one, or none."""

    @classmethod
    def of_next_token(cls, request: Request) -> ScheduledRequest:
        """The last token of a request of whose prompt no logits are wanted."""
        return cls(request, 1, True, _NOTHING, 1)

    @classmethod
    def of(cls, request: Request, num_new_tokens: int) -> ScheduledRequest:
        end = request.num_computed_tokens + num_new_tokens
        completes = end == len(request.tokens)
        if not request.scores_prompt:
            return cls(request, num_new_tokens, completes, _NOTHING, int(completes))
        first, last = max(request.num_computed_tokens, request.num_scored_tokens), request.num_prompt_tokens - 1
        scored = range(first, min(end, last))
        return cls(request, num_new_tokens, completes, scored, num_new_tokens if scored else int(completes))


@dataclass(slots=True)
class SchedulePlan:
    """What to do in one step, and what became true in deciding it."""

    copies: list[BlockCopy] = field(default_factory=list)
    """To be made first, in this order."""
    scheduled: list[ScheduledRequest] = field(default_factory=list)
    reserved: list[Request] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    """Admitted for the first time, reservations included."""
    ended: list[tuple[Request, FinishReason]] = field(default_factory=list)
    """Found complete without computing anything."""
    num_preempted: int = 0
    work: StepWork = _NO_WORK
    """Of `scheduled` all together."""
