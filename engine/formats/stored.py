"""Where a tensor that a layer asks for lies in a file, as data that an architecture states and a reader follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Element = TypeVar("_Element", bound=np.generic)


@dataclass(frozen=True, slots=True)
class RowPick:
    """Rows of a larger stored tensor."""

    of: int
    """Rows the stored tensor must have."""
    rows: npt.NDArray[np.int64]
    """The rows wanted, in the order wanted."""

    def contiguous(self) -> slice | None:
        """The same as a slice, when the rows follow each other."""
        first = int(self.rows[0])
        follow = np.array_equal(self.rows, np.arange(first, first + len(self.rows)))
        return slice(first, first + len(self.rows)) if follow else None


@dataclass(frozen=True, slots=True)
class Member:
    """One of several equal tensors stacked along a first axis: one expert's, one head's."""

    index: int
    of: int
    """How many the stored tensor must have."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's name in the file and, when it is not the whole of it in order, how to get there: take the member, turn
    it, pick the rows."""

    name: str
    pick: RowPick | None = None
    member: Member | None = None
    is_transposed: bool = False
    """The file has the matrix with inputs as rows."""

    def shape(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """What the stored tensor's shape must be for the wanted one."""
        shape = wanted if self.pick is None else (self.pick.of, *wanted[1:])
        if self.is_transposed:
            shape = (shape[1], shape[0])
        return shape if self.member is None else (self.member.of, *shape)

    def picked(self, tensor: npt.NDArray[_Element]) -> npt.NDArray[_Element]:
        """What is wanted of the stored tensor, or of its member where that has been taken; a view if it can be."""
        if self.is_transposed:
            tensor = tensor.T
        return tensor if self.pick is None else tensor[self.pick.contiguous() or self.pick.rows]


def row_range(name: str, first: int, count: int, of: int) -> Stored:
    """Rows `first` to `first + count` of a stored tensor of `of` rows: one part of a fused projection."""
    return Stored(name, RowPick(of, np.arange(first, first + count)))


def halves_from_pairs(name: str, heads: int, head_dim: int) -> Stored:
    """A projection whose file pairs neighbouring rows of a head for rotation: rows (0, h, 1, h + 1, ...) of each head
    come back as (0, 1, ..., h, h + 1, ...), h = half the head."""
    rows = heads * head_dim
    order = np.arange(rows).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(rows)
    return Stored(name, RowPick(rows, order))
