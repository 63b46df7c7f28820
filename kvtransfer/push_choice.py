"""Whether a source is to push or to be pulled from: by what either has been measured to cost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

KvPush = Literal["auto", "on", "off"]
TRIALS = 4
"""Hand-offs of each way before one is chosen."""
MOST_IN_VAIN = 12
"""Grants by which nothing was ever pushed: the source cannot, whatever it said."""
AGAIN = 48
"""Of so many hand-offs one takes the way that was not chosen, so that it is known how that would be now."""
_KEPT = 9
_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class MeasuredHandoff:
    """What one hand-off cost."""

    tokens: int
    """That prefill computed for it."""
    exposed_s: float
    """From the end of prefill to ready."""
    excess_s: float
    """By how much its steps took longer than steps of their size are expected to; its share."""


class _Way:
    """Medians of the last few: one hand-off that met with something else says nothing."""

    def __init__(self) -> None:
        self.begun = 0
        self.measured = 0
        self._exposed_s: deque[float] = deque(maxlen=_KEPT)
        self._excess_a_token_s: deque[float] = deque(maxlen=_KEPT)

    def add(self, one: MeasuredHandoff) -> None:
        self.measured += 1
        self._exposed_s.append(one.exposed_s)
        self._excess_a_token_s.append(one.excess_s / max(one.tokens, 1))

    @property
    def exposed_s(self) -> float:
        return _median(self._exposed_s)

    def cost_s(self, tokens: int) -> float:
        return self.exposed_s + tokens * _median(self._excess_a_token_s)


class PushChoice:
    """Of one source. Tries both ways in turn, then takes the cheaper for a prompt's length.

    A way costs the time until decode may begin once prefill has ended, and the time it takes from prefill. What was
    chosen last is left only for something better by a tenth of what a hand-off exposes: figures scatter. Not
    thread-safe.
    """

    def __init__(self, mode: KvPush) -> None:
        self._mode = mode
        self._pushes = True
        self._push, self._pull = _Way(), _Way()

    def wants_push(self, tokens: int) -> bool:
        """Once for each hand-off; `tokens` is about how many prefill will compute for it."""
        if self._mode != "auto":
            return self._mode == "on"
        pushes = self._next(tokens)
        (self._push if pushes else self._pull).begun += 1
        return pushes

    def ended(self, wanted: bool, pushed: bool, one: MeasuredHandoff) -> None:
        """A hand-off is done. One that was to be pushed, and for the most part was not `pushed`, has measured neither
        way."""
        if wanted == pushed:
            (self._push if pushed else self._pull).add(one)

    def _next(self, tokens: int) -> bool:
        push, pull = self._push, self._pull
        count = push.begun + pull.begun
        if count % AGAIN == AGAIN - 1:
            return not self._pushes
        if not push.measured and push.begun >= MOST_IN_VAIN:
            self._pushes = False
        elif min(push.measured, pull.measured) < TRIALS:
            return self._lacking()
        else:
            self._decide(tokens)
        return self._pushes

    def _lacking(self) -> bool:
        """The way that has been measured less often; of equals, the one begun less often."""
        push, pull = self._push, self._pull
        if push.begun >= MOST_IN_VAIN + pull.begun or pull.begun >= MOST_IN_VAIN + push.begun:
            return push.begun < pull.begun
        return (push.measured, push.begun) <= (pull.measured, pull.begun)

    def _decide(self, tokens: int) -> None:
        margin_s = _MARGIN * max(self._push.exposed_s, self._pull.exposed_s)
        gain_s = self._pull.cost_s(tokens) - self._push.cost_s(tokens)
        if abs(gain_s) > margin_s:
            self._pushes = gain_s > 0


def _median(figures: deque[float]) -> float:
    return sorted(figures)[len(figures) // 2]
