"""Which block holds which content: the index behind prefix reuse."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class PrefixCache:
    """Maps block hashes to blocks and orders the blocks nobody uses by age.

    Knows nothing of owners: the block pool says when a block becomes idle (evictable) or busy. A hash names at most
    one block and a block has at most one hash; a second block of the same content stays unnamed and dies with its
    owner.
    """

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, block: int) -> bool:
        return block in self._hash_of

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest known prefix of a chain of hashes."""
        found: list[int] = []
        for content in hashes:
            block = self._block_of.get(content)
            if block is None:
                break
            found.append(block)
        return found

    def insert(self, block: int, content: bytes) -> bool:
        """Names a busy block; False where the content or the block already has its entry."""
        if content in self._block_of or block in self._hash_of:
            return False
        self._block_of[content] = block
        self._hash_of[block] = content
        return True

    def mark_idle(self, block: int) -> None:
        """The block is used by nobody; it is evicted after those marked before it."""
        self._idle[block] = None

    def mark_busy(self, block: int) -> None:
        del self._idle[block]

    def is_idle(self, block: int) -> bool:
        return block in self._idle

    def evict(self) -> int:
        """Forgets the block idle for longest and returns it."""
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block

    def forget(self, block: int) -> None:
        """Drops the entry of a busy block, whose content is not to be trusted; unknown blocks are fine."""
        content = self._hash_of.pop(block, None)
        if content is not None:
            del self._block_of[content]

    def check(self) -> None:
        """Raises AssertionError where the two directions disagree or an idle block has no name."""
        problems = [
            *(
                f"hash {h.hex()} names block {b}, which is {self._hash_of.get(b)!r}"
                for h, b in self._block_of.items()
                if self._hash_of.get(b) != h
            ),
            *(f"block {b} is idle and unnamed" for b in self._idle if b not in self._hash_of),
        ]
        if len(self._block_of) != len(self._hash_of):
            problems.append(f"{len(self._block_of)} hashes but {len(self._hash_of)} named blocks")
        if problems:
            raise AssertionError("; ".join(problems))
