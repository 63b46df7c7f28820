"""Where a tuner's times come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class TooSlow(Exception):
    """A call takes longer than it may; the text says how long."""


class Timer(Protocol):
    def seconds(self, calls: Sequence[Callable[[], object]], limit_s: float) -> float:
        """Of one call, in the middle of many; `calls` differ in their inputs, so that none finds its own in a cache.

        Raises TooSlow where one takes more than `limit_s`, and whatever a call raises.
        """

    def settle(self) -> None:
        """Waits for all that was started. Raises where the device is no more to be used."""
