"""What a running worker says of its tactics; without torch, for those who only count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TacticCounts:
    """Since the start, for metrics. All 0 where nothing is tuned."""

    hits: int = 0
    misses: int = 0
    """Look-ups of shapes or rows that nothing was tuned for. A step that is a replayed graph looks nothing up: its
    look-ups were those of its capture."""
    skipped: int = 0
    """Tactics that failed when they were tried, over all shapes, by this process or by who wrote what was found."""
