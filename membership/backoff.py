"""How long to wait before trying again."""

from __future__ import annotations

import random


class Backoff:
    """Exponential delays with full jitter, so that many waiting processes do not return together.

    The random source is passed in: a simulation with a seed repeats itself.
    """

    def __init__(self, rng: random.Random, *, first_s: float = 0.1, cap_s: float = 2.0) -> None:
        self._rng = rng
        self._first_s = first_s
        self._cap_s = cap_s
        self._failures = 0

    def next_s(self) -> float:
        """The delay after one more failure: uniform in [half, whole] of first · 2^n, never above the cap."""
        whole = min(self._cap_s, self._first_s * 2 ** min(self._failures, 16))
        self._failures += 1
        return self._rng.uniform(whole / 2, whole)

    def reset(self) -> None:
        self._failures = 0
