"""Where on a GPU a model goes; without torch, for those who only say so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlace:
    """Which GPU, and what is captured there."""

    index: int = 0
    max_num_seqs: int = 64
    enforce_eager: bool = False
    """Launches every step and captures none: a start in less time, steps that take longer."""
