"""Times as shares of what the machine can do."""

from __future__ import annotations

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.report import Measured


def shares(one: Measured, ceilings: Ceilings) -> tuple[float, float]:
    """Of the measured copy bandwidth and matrix rate. Zero where there is no time."""
    if not one.seconds:
        return 0.0, 0.0
    return (
        one.moved_bytes / one.seconds / ceilings.copy_bytes_per_s,
        one.operations / one.seconds / ceilings.flop_per_s(one.precision),
    )
