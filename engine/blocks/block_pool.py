"""Who owns which KV block."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from enum import Enum
from typing import Protocol

from engine.blocks.block_copy import BlockCopy, CopyKind
from engine.blocks.cached_block import BlockContent, CachedBlock, Tier
from engine.blocks.prefix_cache import PrefixCache


class Generations(Protocol):
    """A counter per block, readable by peers that copy blocks: another value means another content."""

    def bump(self, block: int) -> int: ...

    def get(self, block: int) -> int: ...


class ListGenerations:
    """Generations nobody outside this process reads."""

    def __init__(self, num_blocks: int) -> None:
        self._values = [0] * num_blocks

    def bump(self, block: int) -> int:
        self._values[block] += 1
        return self._values[block]

    def get(self, block: int) -> int:
        return self._values[block]


class BlockState(Enum):
    """The one state a block is in. With several owners the strictest wins: DRAINING, then HELD, then IN_USE."""

    FREE = "free"
    CACHED = "cached"
    """Nobody's, content known: found again by its name, or evicted (`PrefixCache`)."""
    IN_USE = "in_use"
    HELD = "held"
    """Lent to a reader under a lease."""
    DRAINING = "draining"
    """Its owner ended, but a copy may still write to it."""


class BlockPool:
    """Hands out blocks to owners and takes them back.

    An owner has one table: the blocks of its positions in order. A block may stand in several tables (prefix reuse,
    forks) while all of them only read it; whoever wants to write asks `make_writable` first and may get a copy.
    A block's generation is bumped when it is taken for new content, before anybody can write to it. Copies are made by
    whoever holds the memory: see `take_copies`. `owner` is any hashable, in the engine a RequestKey.

    Behind the pool stand `num_host_blocks` blocks that only keep contents evicted from it, of `host_min_tokens` or
    more, until they are found again.
    """

    def __init__(
        self, num_blocks: int, generations: Generations, num_host_blocks: int = 0, host_min_tokens: int = 1
    ) -> None:
        self.num_blocks = num_blocks
        self.cache = PrefixCache(num_host_blocks, host_min_tokens)
        """To look things up, and to say what is worth keeping longer; the pool alone changes what is in it."""
        self._generations = generations
        self._free: deque[int] = deque(range(num_blocks))
        self._tables: dict[Hashable, array[int]] = {}
        """Of 32 bits each: every step takes them as they are (`StepArrays`)."""
        self._table_states: dict[Hashable, BlockState] = {}
        self._refs: list[int] = [0] * num_blocks
        self._copies: list[BlockCopy] = []

    @property
    def num_free(self) -> int:
        """Blocks that can be taken now: free and evictable ones."""
        return len(self._free) + self.cache.num_idle

    def count(self, state: BlockState) -> int:
        """Blocks in `state`."""
        if state is BlockState.FREE:
            return len(self._free)
        if state is BlockState.CACHED:
            return self.cache.num_idle
        return sum(1 for owned_state in self._owned_states().values() if owned_state is state)

    def state(self, block: int) -> BlockState:
        if self._refs[block]:
            return self._owned_states()[block]
        return BlockState.CACHED if self.cache.is_idle(block) else BlockState.FREE

    def owners(self) -> set[Hashable]:
        return set(self._tables)

    def table(self, owner: Hashable) -> Sequence[int]:
        """Live view of the owner's blocks."""
        return self._tables[owner]

    def generation(self, block: int) -> int:
        return self._generations.get(block)

    def can_open(self, known: Sequence[bytes], num_new: int, lead: bytes | None = None) -> bool:
        """Whether `open` with the same arguments would succeed."""
        return self._fits([self._entry(name) for name in known], num_new, lead)

    def open(
        self, owner: Hashable, known: Sequence[bytes], num_new: int, lead: bytes | None = None
    ) -> Sequence[int] | None:
        """Starts the owner's table: the blocks that hold the contents `known`, then `num_new` fresh ones.

        Contents that are in host blocks are copied back. With `lead`, the first fresh block begins as a copy of the
        block of that name, for the sake of some of its leading tokens. None, and nothing changed, while it does not
        fit.
        """
        if owner in self._tables:
            raise ValueError(f"owner {owner!r} already has blocks")
        entries = [self._entry(name) for name in known]
        if not self._fits(entries, num_new, lead):
            return None
        for entry in entries:
            self._claim(entry)
        first = [self._copy_of(lead)] if lead is not None else []
        table = array("i", [entry.block if entry.tier is Tier.POOL else self._restore(entry) for entry in entries])
        table.extend(first)
        table.extend([self._take() for _ in range(num_new - len(first))])
        self._tables[owner] = table
        self._table_states[owner] = BlockState.IN_USE
        return table

    def extend(self, owner: Hashable) -> int:
        """Appends one fresh block to the owner's table."""
        if not self.num_free:
            raise ValueError("no block can be taken: look at num_free first")
        block = self._take()
        self._tables[owner].append(block)
        return block

    def fork(self, parent: Hashable, child: Hashable, num_blocks: int) -> Sequence[int]:
        """Starts the child's table with the first `num_blocks` of the parent's, by reference: no block is taken."""
        if child in self._tables:
            raise ValueError(f"owner {child!r} already has blocks")
        shared = self._tables[parent][:num_blocks]
        if len(shared) < num_blocks:
            raise ValueError(f"owner {parent!r} has {len(shared)} blocks, {num_blocks} are to be shared")
        for block in shared:
            self._refs[block] += 1
        self._tables[child] = shared
        self._table_states[child] = BlockState.IN_USE
        return shared

    def is_writable(self, owner: Hashable, index: int) -> bool:
        """Whether nobody else reads the owner's block `index`, nor finds it by its hash."""
        block = self._tables[owner][index]
        return self._refs[block] == 1 and block not in self.cache

    def make_writable(self, owner: Hashable, index: int) -> bool:
        """Makes the owner's block `index` its own alone; False, and nothing changed, if that takes a block too many.

        A block that others read stays theirs and the owner gets a copy (copy on write). The last one to read it takes
        it over without, and it is no longer found by its hash.
        """
        table = self._tables[owner]
        shared = table[index]
        if self._refs[shared] == 1:
            if shared in self.cache:
                self.cache.forget(shared)
                self._generations.bump(shared)
            return True
        if not self.num_free:
            return False
        table[index] = self._take()
        self._refs[shared] -= 1
        self._copies.append(BlockCopy(CopyKind.WITHIN, shared, table[index]))
        return True

    def take_copies(self) -> list[BlockCopy]:
        """The copies decided since the last call. They must be made, in order, before any block is written."""
        copies, self._copies = self._copies, []
        return copies

    def seal(self, owner: Hashable, index: int, content: BlockContent) -> None:
        """What the owner's block `index` holds will not change: others may find it by its name."""
        self.cache.insert(self._tables[owner][index], content)

    def num_private(self, owner: Hashable) -> int:
        """Blocks that nobody but the owner reads."""
        return sum(1 for block in self._tables[owner] if self._refs[block] == 1)

    def distrust(self, owner: Hashable) -> None:
        """No block of the owner may be found by its hash any more: its content may be damaged."""
        for block in self._tables[owner]:
            self.cache.forget(block)

    def hold(self, owner: Hashable) -> None:
        """The owner's blocks are lent out until `release`."""
        self._table_states[owner] = BlockState.HELD

    def drain(self, owner: Hashable) -> None:
        """Keeps the blocks a copy may still write to until `release`; sealed ones are read only and go at once."""
        table = self._tables[owner]
        sealed = [block for block in table if block in self.cache]
        table[:] = array("i", [block for block in table if block not in self.cache])
        self._table_states[owner] = BlockState.DRAINING
        self._drop(sealed)

    def release(self, owner: Hashable) -> None:
        """The owner gives everything back. Children become evictable before their parents."""
        del self._table_states[owner]
        self._drop(self._tables.pop(owner))

    def check(self) -> None:
        """Raises AssertionError naming every broken invariant: each block in exactly one state, counts that add up."""
        self.cache.check()
        counted = Counter(block for table in self._tables.values() for block in table)
        free = Counter(self._free)
        problems = [f"{owner!r} has a block twice" for owner, t in self._tables.items() if len(set(t)) != len(t)]
        if self._tables.keys() != self._table_states.keys():
            problems.append("tables and table states name different owners")
        for block in range(self.num_blocks):
            if counted[block] != self._refs[block]:
                problems.append(f"block {block} counts {self._refs[block]} owners, has {counted[block]}")
            places = free[block] + self.cache.is_idle(block) + (counted[block] > 0)
            if places != 1:
                problems.append(f"block {block} is in {places} states")
            if free[block] and block in self.cache:
                problems.append(f"block {block} is free and named")
        if problems:
            raise AssertionError("; ".join(problems))

    def _take(self) -> int:
        """A block for new content, owned once. Readers of the old content see its generation change first."""
        block = self._free.popleft() if self._free else self._evict()
        self._generations.bump(block)
        self._refs[block] = 1
        return block

    def _evict(self) -> int:
        block, host_block = self.cache.evict()
        if host_block is not None:
            self._copies.append(BlockCopy(CopyKind.OUT, block, host_block))
        return block

    def _fits(self, entries: list[CachedBlock], num_new: int, lead: bytes | None) -> bool:
        if lead is not None:
            entries = [*entries, self._entry(lead)]
        is_idle = self.cache.is_idle
        num_idle = sum([entry.tier is Tier.POOL and is_idle(entry.block) for entry in entries])
        num_restored = sum([entry.tier is Tier.HOST for entry in entries])
        if lead is not None and entries[-1].tier is Tier.HOST:
            num_restored -= 1  # it is copied into one of the new blocks
        return self.num_free - num_idle >= num_new + num_restored

    def _entry(self, name: bytes) -> CachedBlock:
        entry = self.cache.find(name)
        if entry is None:
            raise ValueError(f"no block is known to hold {name.hex()}: look it up first")
        return entry

    def _claim(self, entry: CachedBlock) -> None:
        """Until it is dropped (pool) or unpinned or restored (host), the entry stays where it is."""
        if entry.tier is Tier.HOST:
            self.cache.pin_host(entry.block)
            return
        if self.cache.is_idle(entry.block):
            self.cache.mark_busy(entry.block)
        self._refs[entry.block] += 1

    def _restore(self, entry: CachedBlock) -> int:
        host_block, block = entry.block, self._take()
        self._copies.append(BlockCopy(CopyKind.IN, host_block, block))
        self.cache.restore(host_block, block)
        return block

    def _copy_of(self, name: bytes) -> int:
        """A fresh block that begins with the content of another, which stays what it is."""
        source = self._entry(name)
        self._claim(source)
        block = self._take()
        if source.tier is Tier.POOL:
            self._copies.append(BlockCopy(CopyKind.WITHIN, source.block, block))
            self._drop([source.block])
        else:
            self._copies.append(BlockCopy(CopyKind.IN, source.block, block))
            self.cache.unpin_host(source.block)
        return block

    def _drop(self, blocks: Sequence[int]) -> None:
        refs = self._refs
        for block in reversed(blocks):
            refs[block] -= 1
            if not refs[block] and not self.cache.mark_idle(block):
                self._free.append(block)

    def _owned_states(self) -> dict[int, BlockState]:
        states: dict[int, BlockState] = {}
        for strictest_last in (BlockState.IN_USE, BlockState.HELD, BlockState.DRAINING):
            for owner, table_state in self._table_states.items():
                if table_state is strictest_last:
                    states.update(dict.fromkeys(self._tables[owner], table_state))
        return states
