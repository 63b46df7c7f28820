"""Who gets how much of the time there is: figures are what one comes for, and nobody may use up everybody's time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FOR_FIGURES_S = 200.0
"""Tests and memory checks end so long before the whole does."""
_ONE_MEMORY_CHECK_S, _LEAST_MEMORY_CHECK_S, _LEAST_TEST_S = 100.0, 30.0, 15.0


@dataclass(frozen=True, slots=True)
class Budget:
    ends_s: float
    """On `clock`."""
    clock: Callable[[], float] = time.monotonic

    @property
    def left_s(self) -> float:
        return max(0.0, self.ends_s - self.clock())

    def for_tests(self, files_left: int) -> float | None:
        """Of one of so many files: half of what is left, all of it for the last. None where that is too little to
        begin."""
        left = self.left_s - FOR_FIGURES_S
        allowed = left if files_left <= 1 else left / 2
        return allowed if allowed >= _LEAST_TEST_S else None

    def for_memory_check(self) -> float | None:
        """Of one tool."""
        allowed = min(_ONE_MEMORY_CHECK_S, self.left_s - FOR_FIGURES_S)
        return allowed if allowed >= _LEAST_MEMORY_CHECK_S else None

    def for_task(self, limit_s: float) -> float | None:
        """Of a measurement that may take `limit_s`."""
        left = self.left_s
        return min(limit_s, left) if left > 1.0 else None
