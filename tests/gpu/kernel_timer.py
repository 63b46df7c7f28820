"""What times kernels where they are tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kernel_platform import Platform

from engine.tuning.graph_timer import GraphTimer


class EarlierIsFaster:
    """The emulator has no speed: whoever is tried first is fastest."""

    def __init__(self) -> None:
        self.tried = 0

    def seconds(self, calls: Sequence[Callable[[], object]], limit_s: float) -> float:
        for call in calls:
            call()
        self.tried += 1
        return 1e-6 * self.tried

    def settle(self) -> None:
        return None


def timer_of(platform: Platform) -> EarlierIsFaster | GraphTimer:
    return EarlierIsFaster() if platform.name == "emulated" else GraphTimer(repeats=3)
