"""Which of the blocks nobody uses goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator


class EvictionOrder:
    """Evictable blocks: those of the lowest level first, within a level those added first."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[int, None]] = {}
        self._level_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    def __contains__(self, block: int) -> bool:
        return block in self._level_of

    def __iter__(self) -> Iterator[int]:
        return iter(self._level_of)

    def add(self, block: int, level: int) -> None:
        """Puts a block behind all others of its level."""
        self._level_of[block] = level
        blocks = self._levels.get(level)
        if blocks is None:
            blocks = self._levels[level] = OrderedDict()
        blocks[block] = None

    def remove(self, block: int) -> None:
        """The block is in use, or gone. Raises KeyError if it is not here."""
        level = self._level_of.pop(block)
        blocks = self._levels[level]
        del blocks[block]
        if not blocks:
            del self._levels[level]

    def first(self) -> int:
        """The block that goes first. Raises ValueError where there is none."""
        return next(iter(self._levels[min(self._levels)]))

    def pop_first(self) -> int:
        """Removes the block that goes first and returns it. Raises ValueError where there is none."""
        level = min(self._levels)
        blocks = self._levels[level]
        block, _ = blocks.popitem(last=False)
        if not blocks:
            del self._levels[level]
        del self._level_of[block]
        return block

    def num_below(self, level: int) -> int:
        """Blocks of lower levels."""
        return sum(len(blocks) for each, blocks in self._levels.items() if each < level)

    def check(self) -> None:
        """Raises AssertionError where the two directions disagree."""
        listed = {block: level for level, blocks in self._levels.items() for block in blocks}
        if listed != self._level_of:
            raise AssertionError(f"levels list {listed}, the blocks know {self._level_of}")
