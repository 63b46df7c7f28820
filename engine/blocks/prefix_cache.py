"""Which block holds which content: the index behind prefix reuse, over the pool and the host blocks behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from engine.blocks.cached_block import BlockContent, CachedBlock, Tier
from engine.blocks.eviction_order import EvictionOrder
from engine.blocks.kv_events import KvEventKind, KvEventLog, KvSnapshot
from engine.blocks.token_index import TokenIndex

EVENTS_KEPT = 4096


class PrefixCache:
    """Maps names of contents to blocks and orders the blocks nobody uses by level and age.

    Knows nothing of owners: the block pool says when a block becomes idle (evictable) or busy. A name stands for at
    most one block, in one tier, and a block has at most one name; a second block of the same content stays unnamed and
    dies with its owner. Evicted blocks of the pool that hold `host_min_tokens` go to a host block while one is free
    or holds something of no higher level; evicted host blocks are forgotten.
    """

    def __init__(self, num_host_blocks: int = 0, host_min_tokens: int = 1) -> None:
        self.num_host_blocks = num_host_blocks
        self._host_min_tokens = host_min_tokens
        self.events = KvEventLog(EVENTS_KEPT)
        self._entries: dict[bytes, CachedBlock] = {}
        self._in_pool: dict[int, CachedBlock] = {}
        self._idle = EvictionOrder()
        self._in_host: dict[int, CachedBlock] = {}
        self._host_order = EvictionOrder()
        self._host_free: deque[int] = deque(range(num_host_blocks))
        self._tokens = TokenIndex()

    def __contains__(self, block: int) -> bool:
        """Whether a block of the pool has a name."""
        return block in self._in_pool

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def num_host_used(self) -> int:
        return len(self._in_host)

    def find(self, name: bytes) -> CachedBlock | None:
        return self._entries.get(name)

    def num_known(self, names: Sequence[bytes]) -> int:
        """Length of the longest known prefix of a chain of names."""
        entries = self._entries
        return next((count for count, name in enumerate(names) if name not in entries), len(names))

    def nearest(self, parent: bytes, tokens: Sequence[int]) -> tuple[bytes, int] | None:
        """Name of the content after `parent` that shares the most leading `tokens`, and how many; None for none."""
        return self._tokens.nearest(parent, tokens)

    def insert(self, block: int, content: BlockContent) -> bool:
        """Names a busy block of the pool; False where the content or the block already has its entry."""
        if content.name in self._entries or block in self._in_pool:
            return False
        entry = CachedBlock(content, Tier.POOL, block)
        self._entries[content.name] = self._in_pool[block] = entry
        self._tokens.add(content)
        self.events.add(KvEventKind.STORED, entry)
        return True

    def forget(self, block: int) -> None:
        """Drops the name of a busy block, whose content changes or is not to be trusted; unnamed blocks are fine."""
        entry = self._in_pool.pop(block, None)
        if entry is not None:
            self._drop(entry)

    def mark_idle(self, block: int) -> bool:
        """Nobody uses the block: of its level it is evicted after those marked before it. False if it is unnamed."""
        entry = self._in_pool.get(block)
        if entry is None:
            return False
        self._idle.add(block, entry.level)
        return True

    def mark_busy(self, block: int) -> None:
        """An idle block is used again."""
        self._idle.remove(block)

    def is_idle(self, block: int) -> bool:
        return block in self._idle

    def set_level(self, names: Iterable[bytes], level: int) -> None:
        """Contents of higher levels are evicted later; unknown names are fine."""
        for name in names:
            entry = self._entries.get(name)
            if entry is None or entry.level == level:
                continue
            entry.level = level
            order = self._idle if entry.tier is Tier.POOL else self._host_order
            if entry.block in order:
                order.remove(entry.block)
                order.add(entry.block, level)

    def evict(self) -> tuple[int, int | None]:
        """Takes the first idle block of the pool: its number, and the host block its content moves to, if it does."""
        block = self._idle.pop_first()
        entry = self._in_pool.pop(block)
        host_block = self._take_host_block(entry) if self.num_host_blocks else None
        if host_block is None:
            self._drop(entry)
        else:
            entry.tier, entry.block = Tier.HOST, host_block
            self._in_host[host_block] = entry
            self._host_order.add(host_block, entry.level)
            self.events.add(KvEventKind.STORED, entry)
        return block, host_block

    def num_host_room(self, level: int) -> int:
        """Host blocks that contents of `level` can have without driving out any of their own level."""
        return len(self._host_free) + self._host_order.num_below(level)

    def pin_host(self, host_block: int) -> None:
        """Keeps a host block from being reused until `unpin_host` or `restore`."""
        self._host_order.remove(host_block)

    def unpin_host(self, host_block: int) -> None:
        self._host_order.add(host_block, self._in_host[host_block].level)

    def restore(self, host_block: int, block: int) -> None:
        """The content of a pinned host block moves to a busy, unnamed block of the pool; the host block is free."""
        entry = self._in_host.pop(host_block)
        entry.tier, entry.block = Tier.POOL, block
        self._in_pool[block] = entry
        self._host_free.append(host_block)
        self.events.add(KvEventKind.STORED, entry)

    def snapshot(self) -> KvSnapshot:
        """Everything that can be found now, for a reader of `events`."""
        full = (entry for entry in self._entries.values() if entry.content.is_full)
        blocks = tuple((entry.content.name, entry.content.parent, entry.tier) for entry in full)
        return KvSnapshot(self.events.seq, blocks)

    def check(self) -> None:
        """Raises AssertionError where the directions disagree, or a host block is not in exactly one place."""
        self._idle.check()
        self._host_order.check()
        places = {Tier.POOL: self._in_pool, Tier.HOST: self._in_host}
        problems = [
            f"{name.hex()} is said to be in {entry.tier.value} block {entry.block}, which knows nothing of it"
            for name, entry in self._entries.items()
            if places[entry.tier].get(entry.block) is not entry or entry.content.name != name
        ]
        if len(self._entries) != len(self._in_pool) + len(self._in_host):
            problems.append("a block has a name that is not known")
        if len(self._entries) != len(self._tokens):
            problems.append(f"{len(self._entries)} contents, {len(self._tokens)} found by their tokens")
        problems += [f"block {block} is idle and unnamed" for block in self._idle if block not in self._in_pool]
        for host_block in range(self.num_host_blocks):
            is_free, is_used = host_block in self._host_free, host_block in self._in_host
            if is_free == is_used or is_used != (host_block in self._host_order):
                problems.append(f"host block {host_block}: free {is_free}, used {is_used}, or pinned")
        if problems:
            raise AssertionError("; ".join(problems))

    def _take_host_block(self, entry: CachedBlock) -> int | None:
        """A host block for an evicted content, if one is free or holds something worth no more."""
        if len(entry.content.tokens) < self._host_min_tokens:
            return None
        if self._host_free:
            return self._host_free.popleft()
        if not len(self._host_order):
            return None
        worst = self._in_host[self._host_order.first()]
        if worst.level > entry.level:
            return None
        self._host_order.remove(worst.block)
        del self._in_host[worst.block]
        self._drop(worst)
        return worst.block

    def _drop(self, entry: CachedBlock) -> None:
        """Forgets an entry whose place is already given up."""
        del self._entries[entry.content.name]
        self._tokens.remove(entry.content)
        self.events.add(KvEventKind.REMOVED, entry)
