"""Who gets how much of the time there is: figures are what one comes for, and nobody may use up everybody's time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FOR_FIGURES_S = 240.0
"""Builds, tests and the first memory checks end so long before the whole does."""
_LEAST_BUILD_S, _ONE_TEST_S, _LEAST_TEST_S = 60.0, 120.0, 15.0
_ONE_CHECK_S, _LEAST_CHECK_S, _AFTER_CHECKS_S = 75.0, 20.0, 10.0


@dataclass(frozen=True, slots=True)
class Budget:
    ends_s: float
    """On `clock`."""
    clock: Callable[[], float] = time.monotonic

    @property
    def left_s(self) -> float:
        return max(0.0, self.ends_s - self.clock())

    def for_build(self) -> float:
        """Of a compiler, from now on: without a library there is nothing to measure."""
        return max(_LEAST_BUILD_S, self.left_s - FOR_FIGURES_S)

    def for_test(self) -> float | None:
        """Of one file, which runs beside others. None where that is too little to begin."""
        allowed = min(_ONE_TEST_S, self.left_s - FOR_FIGURES_S)
        return allowed if allowed >= _LEAST_TEST_S else None

    def for_check(self) -> float | None:
        """Of one file under one memory checker, beside others."""
        allowed = min(_ONE_CHECK_S, self.left_s - _AFTER_CHECKS_S)
        return allowed if allowed >= _LEAST_CHECK_S else None

    def for_task(self, limit_s: float) -> float | None:
        """Of a measurement that may take `limit_s`. One that cannot have half of it is not begun."""
        left = self.left_s
        return min(limit_s, left) if left > max(1.0, limit_s / 2) else None
