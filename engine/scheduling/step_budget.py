"""How much one step may still take on: tokens, and milliseconds of predicted work."""

from __future__ import annotations

from collections.abc import Sequence

from engine.config import EngineConfig
from engine.scheduling.step_cost import StepCost, StepWork

_QUIET_PART = 1 / 3
"""Of `max_mixed_step_ms`: what answers that flow are held up for the sake of few."""


class StepBudget:
    """Filled request by request, most urgent first; lives for one `Scheduler.schedule`.

    Decoding requests always go, and one block of one prompt, however long both may take: nobody starves. Beyond that a
    step is predicted to take `max_step_ms` at most; and where somebody gets a token from it, who waits for all of it,
    `max_mixed_step_ms` if no fewer wait for a first token than decode, a third of that otherwise. A second prompt is
    taken on within that third alone: whoever shares a step with others waits for all of them, and one after another
    half of them waits half as long. Without a `StepCost` only tokens count.
    """

    __slots__ = ("_config", "_cost", "_crowded", "_has_prompt", "num_logit_rows", "num_pairs", "tokens_left")

    def __init__(self, config: EngineConfig, cost: StepCost | None, *, crowded: bool) -> None:
        """`crowded`: no fewer wait for a first token than decode."""
        self.tokens_left = config.max_num_batched_tokens
        self.num_pairs = 0
        self.num_logit_rows = 0
        self._config = config
        self._cost = cost
        self._crowded = crowded
        self._has_prompt = False

    @property
    def work(self) -> StepWork:
        """What was taken on so far."""
        return StepWork(self._config.max_num_batched_tokens - self.tokens_left, self.num_pairs, self.num_logit_rows)

    def chunk(self, start: int, end: int, max_tokens: int, *, wants_logits: bool = False) -> int:
        """How many of the tokens [start, end) to compute now: all, or as many as end on a block's end.

        `max_tokens` bounds it further. `wants_logits`: of every one of them.
        """
        gap, most = end - start, min(self.tokens_left, max_tokens)
        if gap == 1:
            return min(most, 1)
        size = self._config.block_tokens
        count = min(most, self._tokens_in_time(start, wants_logits=wants_logits))
        if not self._has_prompt:
            count = max(count, min(most, size - start % size))
        return gap if gap <= count else max(0, (start + count) // size * size - start)

    def take(self, start: int, num_tokens: int, num_logit_rows: int, *, is_prompt: bool) -> None:
        """The tokens from `start` on are computed in this step."""
        self.tokens_left -= num_tokens
        self.num_pairs += num_tokens * start + num_tokens * (num_tokens + 1) // 2
        self.num_logit_rows += num_logit_rows
        self._has_prompt |= is_prompt

    def take_next_tokens(self, starts: Sequence[int]) -> None:
        """Each of these positions is computed in this step, with its logits."""
        self.tokens_left -= len(starts)
        self.num_pairs += sum(starts) + len(starts)
        self.num_logit_rows += len(starts)

    def _tokens_in_time(self, start: int, *, wants_logits: bool) -> int:
        if self._cost is None:
            return self.tokens_left
        left_ms = self._limit_ms() - self._cost.predict_ms(self.work)
        return self._cost.tokens_within(left_ms, start, wants_logits=wants_logits)

    def _limit_ms(self) -> float:
        config = self._config
        if not self.num_logit_rows:
            return config.max_step_ms
        part = 1.0 if self._crowded and not self._has_prompt else _QUIET_PART
        return min(config.max_step_ms, part * config.max_mixed_step_ms)
