"""Finds, among the blocks that follow one parent, the one that begins most like a given run of tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from engine.blocks.cached_block import BlockContent


class TokenIndex:
    """Contents by parent, those of one parent sorted by their tokens: the best match is a neighbour in that order."""

    def __init__(self) -> None:
        self._by_parent: dict[bytes, list[tuple[tuple[int, ...], bytes]]] = {}

    def __len__(self) -> int:
        return sum(len(siblings) for siblings in self._by_parent.values())

    def add(self, content: BlockContent) -> None:
        insort(self._by_parent.setdefault(content.parent, []), (content.tokens, content.name))

    def remove(self, content: BlockContent) -> None:
        siblings = self._by_parent[content.parent]
        del siblings[bisect_left(siblings, (content.tokens, content.name))]
        if not siblings:
            del self._by_parent[content.parent]

    def nearest(self, parent: bytes, tokens: Sequence[int]) -> tuple[bytes, int] | None:
        """Name of the content after `parent` that shares the most leading `tokens`, and how many; None for none."""
        siblings = self._by_parent.get(parent)
        if not siblings:
            return None
        wanted = tuple(tokens)
        place = bisect_left(siblings, (wanted, b""))
        neighbours = siblings[max(0, place - 1) : place + 1]
        shared, name = max((_num_shared(found, wanted), name) for found, name in neighbours)
        return (name, shared) if shared else None


def _num_shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    count = 0
    for ours, theirs in zip(first, second, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
