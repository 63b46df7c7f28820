"""The decisions of one step, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.block_copy import BlockCopy
from engine.request import Request
from engine.step_cost import StepWork
from wire.sampling import FinishReason

_NO_WORK = StepWork(0, 0, 0)


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A request's part of a step: the `num_new_tokens` tokens from `num_computed_tokens` on."""

    request: Request
    num_new_tokens: int

    @property
    def completes(self) -> bool:
        """Whether the KV catches up with the tokens, so that the next one can be drawn."""
        return self.request.num_computed_tokens + self.num_new_tokens == self.request.num_tokens

    @property
    def scored(self) -> range:
        """Positions whose logits are wanted for the log probability of the prompt token behind each."""
        request, start = self.request, self.request.num_computed_tokens
        if not request.scores_prompt:
            return range(0)
        return range(
            max(start, request.num_scored_tokens), min(start + self.num_new_tokens, request.num_prompt_tokens - 1)
        )

    @property
    def num_logits(self) -> int:
        """Rows of logits wanted: of every token here, of the last one, or none."""
        return self.num_new_tokens if self.scored else int(self.completes)


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
