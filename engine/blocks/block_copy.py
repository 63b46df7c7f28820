"""Copies of whole KV blocks that a step must make before it computes, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class CopyKind(Enum):
    """Between which memories a block is copied."""

    WITHIN = "within"
    """Pool to pool."""
    OUT = "out"
    """Pool to host."""
    IN = "in"
    """Host to pool."""


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """All bytes of block `source` go to block `dest`.

    The copies of a plan are made one after another, in order, before anything of its step is written: a block may be
    the source of one and then the destination of a later one. Generations of destinations in the pool have been
    bumped already.
    """

    kind: CopyKind
    source: int
    dest: int
