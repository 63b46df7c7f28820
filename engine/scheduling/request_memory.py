"""What blocks a request needs, gets and gives back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.blocks.block_copy import BlockCopy
from engine.blocks.block_pool import BlockPool
from engine.blocks.cached_block import BlockContent, Tier
from engine.config import EngineConfig
from engine.scheduling.request import Request, RequestKind
from wire.block_hash import block_hash

ORDINARY = 0
KEPT = 1
"""Levels of cached contents: KEPT ones belong to a preempted request that waits to go on."""


@dataclass(frozen=True, slots=True)
class KnownPrefix:
    """Leading tokens of a request whose KV can be had without computing it."""

    names: Sequence[bytes]
    """Contents of whole blocks."""
    lead: bytes | None
    """Content whose leading tokens are those that follow, to be copied; None for none."""
    num_tokens: int
    """All of them together."""


_NOTHING = KnownPrefix((), None, 0)


class RequestMemory:
    """Turns tokens of requests into blocks of the pool: the scheduler decides who, this decides how much.

    A request writes only into blocks that are its own alone. Others are read: those found in the prefix cache, and
    those of a fork, which stand in the tables of all its branches until one of them writes.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool) -> None:
        self._config = config
        self._pool = pool

    def find(self, request: Request) -> KnownPrefix:
        """What need not be computed for a waiting request; its last token must be, and all whose logits are wanted."""
        if not self._config.enable_prefix_caching:
            return _NOTHING
        size, most = self._config.block_tokens, _most_known(request)
        names = request.hashes(most // size, size)
        names = names[: self._pool.cache.num_known(names)]
        start = len(names) * size
        if request.is_computed_elsewhere:  # blocks that a peer fills are filled whole
            return KnownPrefix(names, None, start)
        lead, num_tokens = self._nearest(request, len(names), min(start + size, most))
        return KnownPrefix(names, lead, start + num_tokens)

    def is_being_computed(self, request: Request, known: KnownPrefix, others: Iterable[Request]) -> bool:
        """Whether one of `others` will soon have computed the block that follows the `known` ones, and let it be found.

        Not where it was to have found it already: of blocks that hold the same, only one has the name.
        """
        index, size = len(known.names), self._config.block_tokens
        if not self._config.enable_prefix_caching or index >= _most_known(request) // size:
            return False
        name = request.hashes(index + 1, size)[index]
        return any(
            other.num_computed_tokens // size <= index < other.num_known_tokens // size
            and other.hashes(index + 1, size)[index] == name
            for other in others
        )

    def open(self, request: Request, known: KnownPrefix) -> bool:
        """Gives a waiting request the blocks of all its tokens and, if it decodes here, one to grow into.

        Sets `num_computed_tokens` to what is known already. False, and nothing changed, while that does not fit.
        """
        num_new = self._blocks_to_open(request) - len(known.names)
        block_ids = self._pool.open(request.key, known.names, num_new, known.lead)
        num_computed = known.num_tokens
        if block_ids is None and known.lead is not None:  # its source may be the very block that is needed
            block_ids = self._pool.open(request.key, known.names, num_new)
            num_computed = len(known.names) * self._config.block_tokens
        if block_ids is None:
            return False
        request.block_ids, request.num_computed_tokens = block_ids, num_computed
        self.unkeep(request)
        return True

    def fork(self, parent: Request, child: Request) -> None:
        """Lets the child read every block of the parent that holds KV of tokens both have; takes no memory."""
        shared = _num_shared_tokens(parent, child)
        child.block_ids = self._pool.fork(parent.key, child.key, self._config.blocks_for(shared))
        child.num_computed_tokens = shared

    def grow(self, request: Request) -> bool:
        """Gets a running request every block it is about to write; False where the pool has no more."""
        size, num_tokens = self._config.block_tokens, len(request.tokens)
        while len(request.block_ids) * size < num_tokens:
            if not self._pool.num_free:
                return False
            self._pool.extend(request.key)
        num_computed = request.num_computed_tokens
        return num_computed == num_tokens or self._pool.make_writable(request.key, num_computed // size)

    def covers(self, request: Request, num_new_tokens: int) -> bool:
        """Whether the KV of the next `num_new_tokens` tokens can be written."""
        size, start = self._config.block_tokens, request.num_computed_tokens
        is_there = start + num_new_tokens <= len(request.block_ids) * size
        # No later block of a table is ever shared before it is full.
        return is_there and self._pool.is_writable(request.key, start // size)

    def written(self, request: Request, num_new_tokens: int) -> None:
        """The KV of the next `num_new_tokens` tokens has been written: blocks now full can be found by others."""
        size = self._config.block_tokens
        sealed = request.num_computed_tokens // size
        request.num_computed_tokens += num_new_tokens
        full = request.num_computed_tokens // size
        if self._config.enable_prefix_caching and full > sealed:
            names = request.hashes(full, size)
            for index in range(sealed, full):
                start, end = index * size, (index + 1) * size
                parent = request.parent_of(index, end, size)
                content = BlockContent(names[index], parent, tuple(request.tokens[start:end]), is_full=True)
                self._pool.seal(request.key, index, content)

    def holds_copies(self, request: Request) -> bool:
        """Whether a whole block of it holds what others find elsewhere: without it, the request would find that too."""
        if not self._config.enable_prefix_caching:
            return False
        size = self._config.block_tokens
        names = request.hashes(request.num_computed_tokens // size, size)
        entries = [self._pool.cache.find(name) for name in names]
        return any(
            entry is not None and (entry.tier, entry.block) != (Tier.POOL, block)
            for entry, block in zip(entries, request.block_ids, strict=False)
        )

    def release(self, request: Request) -> None:
        """Takes all blocks of a request back; what they hold can be found until they are needed."""
        self._seal_tail(request)
        self.discard(request)

    def discard(self, request: Request) -> None:
        """Takes all blocks of a request back, its partial one for nothing but its memory."""
        request.block_ids = ()
        self._pool.release(request.key)

    def preempt(self, request: Request) -> None:
        """Takes all blocks of a running request back: to keep what they hold, on the host if need be, or to recompute.

        Kept contents are evicted after all others, and go to host blocks when they are. They can be lost
        nevertheless, when everything is full of kept ones: what is not found again is computed again.
        """
        if self._is_worth_keeping(request):
            self._seal_tail(request)
            request.kept = self._names(request)
            self._pool.cache.set_level(request.kept, KEPT)
        self.discard(request)
        request.num_computed_tokens = 0

    def unkeep(self, request: Request) -> None:
        """What was kept for a request is worth no more than anything else."""
        if request.kept:
            self._pool.cache.set_level(request.kept, ORDINARY)
            request.kept = ()

    def take_copies(self) -> list[BlockCopy]:
        """The block copies decided since the last call, in order."""
        return self._pool.take_copies()

    def _nearest(self, request: Request, index: int, end: int) -> tuple[bytes | None, int]:
        """The content that begins most like block `index` of a request up to token `end`, and for how many tokens.

        Where a model computes answers another way than prompts, what only prompts have a part in is good for the
        tokens of this prompt, and what an answer has a part in for requests whose prompt is as long.
        """
        size = self._config.block_tokens
        start = index * size
        request.hashes(index, size)
        ends = {min(end, request.num_prompt_tokens), end} if request.answer_is_apart else (end,)
        found: tuple[bytes | None, int] = (None, self._config.block_copy_cost)
        for each in ends:
            parent = request.parent_of(index, each, size)
            nearest = self._pool.cache.nearest(parent, request.tokens[start:each])
            if nearest is not None and nearest[1] > found[1]:
                found = nearest
        return found if found[0] is not None else (None, 0)

    def _blocks_to_open(self, request: Request) -> int:
        needed = self._config.blocks_for(request.num_tokens)
        if request.kind is RequestKind.PREFILL:
            return needed
        longest = min(request.num_prompt_tokens + request.sampling.max_tokens, self._config.max_model_len)
        # The last token's KV is never computed: nothing comes after it.
        return min(needed + 1, self._config.blocks_for(longest - 1))

    def _is_worth_keeping(self, request: Request) -> bool:
        """Whether the host has room, and copying out and back is cheaper than computing again."""
        num_blocks = self._pool.num_private(request.key)
        if not 0 < num_blocks <= self._pool.cache.num_host_room(KEPT):
            return False
        num_tokens = min(request.num_computed_tokens, num_blocks * self._config.block_tokens)
        return num_tokens > 2 * num_blocks * self._config.block_copy_cost

    def _seal_tail(self, request: Request) -> None:
        """Lets others find the tokens in the last, partial block: whoever goes on from there copies them."""
        index, num_tokens = divmod(request.num_computed_tokens, self._config.block_tokens)
        if num_tokens <= self._config.block_copy_cost or not self._config.enable_prefix_caching:
            return
        tail = self._tail(request)
        if tail is not None and self._pool.is_writable(request.key, index):
            self._pool.seal(request.key, index, tail)

    def _names(self, request: Request) -> list[bytes]:
        """Names of all contents of a request, its partial block's included."""
        size = self._config.block_tokens
        names = request.hashes(request.num_computed_tokens // size, size)
        tail = self._tail(request)
        return [*names, tail.name] if tail is not None else names

    def _tail(self, request: Request) -> BlockContent | None:
        """What the last, partial block of a request holds; None where its tokens end with a block."""
        size = self._config.block_tokens
        full, end = request.num_computed_tokens // size, request.num_computed_tokens
        tokens = tuple(request.tokens[full * size : end])
        if not tokens:
            return None
        request.hashes(full, size)
        parent = request.parent_of(full, end, size)
        return BlockContent(block_hash(parent, tokens), parent, tokens, is_full=False)


def _most_known(request: Request) -> int:
    """Most leading tokens that need not be computed."""
    return request.num_scored_tokens if request.scores_prompt else request.num_tokens - 1


def _num_shared_tokens(parent: Request, child: Request) -> int:
    """Leading tokens whose KV the parent has and the child can use: all but its last one, which must be computed."""
    if parent.root != child.root:
        return 0
    most = min(parent.num_computed_tokens, child.num_tokens - 1)
    if child.answer_is_apart and parent.num_prompt_tokens != child.num_prompt_tokens:
        most = min(most, parent.num_prompt_tokens, child.num_prompt_tokens)
    if parent.tokens[:most] == child.tokens[:most]:
        return most
    pairs = zip(parent.tokens, child.tokens, strict=False)
    return next(index for index, (ours, theirs) in enumerate(pairs) if ours != theirs)
