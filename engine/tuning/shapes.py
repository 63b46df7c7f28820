"""For what a tactic is chosen: an operation's sizes, and a bucket of rows."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Rows that are tried; a call with others takes what the next larger bucket has, and beyond the last the last's."""


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What weights decide: an operation, the elements of an output row, and those of an input row."""

    op: str
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.op}:{self.n}x{self.k}"


def bucket_of(rows: int, buckets: tuple[int, ...] = BUCKETS) -> int:
    """The smallest of the ascending `buckets` that holds so many rows, else the largest. Raises ValueError for none."""
    if rows < 1:
        raise ValueError(f"{rows} rows, expected at least 1")
    return buckets[min(bisect_left(buckets, rows), len(buckets) - 1)]
