"""Beam search: which prefixes go on, which answers are complete, and when to stop. Pure; one step at a time.

The rules are those of `transformers` (`GenerationMixin._beam_search`), so that both find the same answers. Totals are
float64, and equals are ordered by prefix, then by token id: the outcome is one, wherever it is computed.

A stop string ends an answer as a stop token does, with the token that completes it: that token counts in total and
length, and no prefix goes on from there. The same reading gives the text its end in the router.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wire.sampling import Beam, BeamSearch, EarlyStopping, FinishReason, TokenLogprobs

if TYPE_CHECKING:
    from wire.text.answer_text import AnswerText


@dataclass(frozen=True, slots=True)
class Prefix:
    """A running beam."""

    tokens: tuple[int, ...] = ()
    """Of the answer so far."""
    total: float = 0.0
    """Sum of their log probabilities."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    text: AnswerText | None = None
    """What the tokens read as, where stop strings may end it."""


@dataclass(frozen=True, slots=True)
class Extension:
    """A prefix that goes on: prefix number `parent` of those before, and `token`."""

    parent: int
    token: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    parent: int
    token: int
    total: float
    figures: TokenLogprobs
    text: AnswerText | None = None
    finish: FinishReason = FinishReason.NONE


class Beams:
    """The search for one prompt. `running` are the prefixes to be extended, best first, at first the empty one."""

    def __init__(
        self,
        params: BeamSearch,
        *,
        max_tokens: int,
        min_tokens: int,
        ends: Collection[int],
        num_top: int | None,
        text: AnswerText | None = None,
    ) -> None:
        """`ends`: tokens that end an answer. `num_top`: alternatives reported beside each token; None reports none.

        `text`: that of no tokens, which knows the stop strings.
        """
        self.running: list[Prefix] = [Prefix(text=text)]
        self._params = params
        self._max_tokens = max_tokens
        self._min_tokens = min_tokens
        self._ends = frozenset(ends)
        self._num_top = num_top
        self._complete: list[Beam] = []

    @property
    def num_options(self) -> int:
        """Likeliest tokens to be given for each running prefix."""
        return max(self._params.num_candidates(len(self._ends)), self._num_top or 0)

    @property
    def answers(self) -> tuple[Beam, ...]:
        """The best complete answers, best first: what the search found, once it is over."""
        return tuple(self._complete[: self._params.num_answers])

    def extend(self, options: Sequence[TokenLogprobs]) -> list[Extension]:
        """One step. `options[i]`: the `num_options` likeliest tokens after `running[i]`, likeliest first.

        Returns how the new `running` came from the old ones; empty once the search is over.
        """
        length = len(self.running[0].tokens) + 1
        candidates = [self._read(each, length) for each in self._candidates(options, length)]
        going_on = [each for each in candidates if each.finish is FinishReason.NONE][: self._params.width]
        for candidate in candidates[: self._params.width]:
            if candidate.finish is not FinishReason.NONE:
                self._conclude(candidate, length)
        if not going_on or self._is_over(going_on[0].total, length):
            self.running = []
            return []
        self.running = [self._grown(each) for each in going_on]
        return [Extension(each.parent, each.token) for each in going_on]

    def _candidates(self, options: Sequence[TokenLogprobs], length: int) -> list[_Candidate]:
        candidates = [
            _Candidate(parent, token, prefix.total + logprob, one)
            for parent, (prefix, one) in enumerate(zip(self.running, options, strict=True))
            for token, logprob in zip(one.top_ids, one.top_logprobs, strict=True)
            if length > self._min_tokens or token not in self._ends
        ]
        candidates.sort(key=lambda each: (-each.total, each.parent, each.token))
        return candidates[: self._params.num_candidates(len(self._ends))]

    def _read(self, candidate: _Candidate, length: int) -> _Candidate:
        """Whether the answer ends with it."""
        text = self.running[candidate.parent].text
        text = text.after(candidate.token) if text is not None else None
        if candidate.token in self._ends or (text is not None and text.stopped):
            finish = FinishReason.STOP
        else:
            finish = FinishReason.LENGTH if length >= self._max_tokens else FinishReason.NONE
        return replace(candidate, text=text, finish=finish)

    def _conclude(self, candidate: _Candidate, length: int) -> None:
        """An answer is complete; it is kept if it is among the `width` best."""
        grown = self._grown(candidate)
        self._complete.append(Beam(grown.tokens, grown.logprobs, self._score(grown.total, length), candidate.finish))
        self._complete.sort(key=lambda beam: -beam.score)
        del self._complete[self._params.width :]

    def _is_over(self, best_total: float, length: int) -> bool:
        if len(self._complete) < self._params.width:
            return False
        if self._params.early_stopping is EarlyStopping.TRUE:
            return True
        # The longest answer scores best where length is rewarded; otherwise what is there now is as good as it gets.
        longest = self._params.early_stopping is EarlyStopping.NEVER and self._params.length_penalty > 0.0
        return self._score(best_total, self._max_tokens if longest else length) <= self._complete[-1].score

    def _score(self, total: float, length: int) -> float:
        return total / math.pow(length, self._params.length_penalty)

    def _grown(self, candidate: _Candidate) -> Prefix:
        prefix = self.running[candidate.parent]
        logprobs = prefix.logprobs
        if self._num_top is not None:
            logprobs = (*logprobs, _figures(candidate.token, candidate.figures, self._num_top))
        return Prefix((*prefix.tokens, candidate.token), candidate.total, logprobs, candidate.text)


def _figures(token: int, row: TokenLogprobs, num_top: int) -> TokenLogprobs:
    logprob = row.top_logprobs[row.top_ids.index(token)]
    rank = 1 + sum(1 for other in row.top_logprobs if other > logprob)
    return TokenLogprobs(logprob, row.top_ids[:num_top], row.top_logprobs[:num_top], rank)
