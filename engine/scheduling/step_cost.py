"""How long a step takes: four prices, learnt from the steps that were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

_RATE = 0.15
"""Share of an error that one measured step corrects."""
_MOST = 0.5
"""Most a single step's error counts for, as a logarithm: one that was interrupted teaches little."""
_TYPICAL = (5.0, 1.0, 1e-3, 0.7)
"""The prices in tokens of a small dense model on a CPU: where measured steps do not tell two of them apart."""
_FIT_ROUNDS = 200
_FIT_RATE = 0.7


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step computes, as far as its duration depends on it."""

    num_tokens: int
    """Query tokens: rows of every matrix but the last."""
    num_pairs: int
    """Query tokens, each with every token it attends to."""
    num_logit_rows: int
    """Rows multiplied with the vocabulary and drawn from."""


class StepCost:
    """Predicts milliseconds as a sum of four prices: of any step, of a token, of a pair, of a row of logits.

    Each measured step corrects the prices by the logarithm of its error, each in proportion to its part in the
    prediction: gradient descent on the squared logarithmic error, over the prices' logarithms. So they stay positive,
    what hardly mattered for a step is hardly changed by it, and a step of a millisecond teaches as much as one of a
    second. Pure: equal observations in equal order give equal prices.
    """

    __slots__ = ("_prices",)

    def __init__(self, prices: Sequence[float]) -> None:
        """`prices` in ms: of a step, of a token, of a pair, of a row of logits. All positive."""
        if len(prices) != 4 or not all(0 < price < float("inf") for price in prices):
            raise ValueError(f"prices are {prices}, expected four positive numbers")
        self._prices = tuple(prices)

    @classmethod
    def fitted(cls, samples: Iterable[tuple[StepWork, float]]) -> StepCost:
        """Of measured steps (work, ms), at least one; from there on it learns from others."""
        known = [(work, ms) for work, ms in samples if ms > 0]
        if not known:
            raise ValueError("no step was measured: expected at least one, of more than 0 ms")
        work, ms = known[0]
        scale = ms / cls(_TYPICAL).predict_ms(work)
        cost = cls([price * scale for price in _TYPICAL])
        for _ in range(_FIT_ROUNDS):
            for work, ms in known:
                cost._correct(work, ms, _FIT_RATE, float("inf"))
        return cost

    @property
    def prices(self) -> Sequence[float]:
        """In ms: of a step, of a token, of a pair, of a row of logits."""
        return self._prices

    def predict_ms(self, work: StepWork) -> float:
        step, token, pair, row = self._prices
        return step + token * work.num_tokens + pair * work.num_pairs + row * work.num_logit_rows

    def observe(self, work: StepWork, ms: float) -> None:
        """A step of this work took `ms` milliseconds."""
        self._correct(work, ms, _RATE, _MOST)

    def tokens_within(self, left_ms: float, start: int, *, wants_logits: bool = False) -> int:
        """Most tokens from position `start` on that one sequence can add to a step for `left_ms` more milliseconds."""
        if left_ms <= 0:
            return 0
        _, token, pair, row = self._prices
        # n tokens attend to n * start + n * (n + 1) / 2 others: the larger root of a quadratic.
        linear = token + pair * (start + 0.5) + (row if wants_logits else 0.0)
        return int(2 * left_ms / (linear + sqrt(linear * linear + 2 * pair * left_ms)))

    def _correct(self, work: StepWork, ms: float, rate: float, most: float) -> None:
        if ms <= 0:
            return
        parts = [price * term for price, term in zip(self._prices, _terms(work), strict=True)]
        predicted = sum(parts)
        shares = [part / predicted for part in parts]
        error = max(-most, min(most, log(ms / predicted)))
        gain = rate * error / sum(share * share for share in shares)
        self._prices = tuple(price * exp(gain * share) for price, share in zip(self._prices, shares, strict=True))


def _terms(work: StepWork) -> tuple[float, float, float, float]:
    return (1.0, work.num_tokens, work.num_pairs, work.num_logit_rows)
