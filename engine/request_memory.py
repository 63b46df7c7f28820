"""What blocks a request needs, gets and gives back."""

from __future__ import annotations

from engine.block_copy import BlockCopy
from engine.block_pool import BlockPool
from engine.config import EngineConfig
from engine.request import Request, RequestKind


class RequestMemory:
    """Turns tokens of requests into blocks of the pool: the scheduler decides who, this decides how much.

    A request writes only into blocks that are its own alone. Others are read: those found in the prefix cache, and
    those of a fork, which stand in the tables of all its branches until one of them writes.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool) -> None:
        self._config = config
        self._pool = pool

    def open(self, request: Request) -> bool:
        """Gives a waiting request the blocks of all its tokens and, if it decodes here, one to grow into.

        Sets `num_computed_tokens` to what is known already. False, and nothing changed, while that does not fit.
        """
        shared = self._cached_prefix(request)
        num_new = self._blocks_to_open(request) - len(shared)
        if not self._pool.can_open(shared, num_new):
            return False
        request.block_ids = self._pool.open(request.key, shared, num_new)
        request.num_computed_tokens = len(shared) * self._config.block_tokens
        return True

    def num_known_tokens(self, request: Request) -> int:
        """Leading tokens that `open` would find computed."""
        return len(self._cached_prefix(request)) * self._config.block_tokens

    def fork(self, parent: Request, child: Request) -> None:
        """Lets the child read every block of the parent that holds KV of tokens both have; takes no memory."""
        shared = _num_shared_tokens(parent, child)
        child.block_ids = self._pool.fork(parent.key, child.key, self._config.blocks_for(shared))
        child.num_computed_tokens = shared

    def grow(self, request: Request) -> bool:
        """Gets a running request every block it is about to write; False where the pool has no more."""
        while len(request.block_ids) < self._config.blocks_for(request.num_tokens):
            if not self._pool.num_free:
                return False
            self._pool.extend(request.key)
        if request.num_computed_tokens == request.num_tokens:
            return True
        return self._pool.make_writable(request.key, self._first_written(request))

    def covers(self, request: Request, num_new_tokens: int) -> bool:
        """Whether the KV of the next `num_new_tokens` tokens can be written."""
        end = self._config.blocks_for(request.num_computed_tokens + num_new_tokens)
        return end <= len(request.block_ids) and self._pool.is_writable(request.key, self._first_written(request))

    def written(self, request: Request, num_new_tokens: int) -> None:
        """The KV of the next `num_new_tokens` tokens has been written: blocks now full can be found by others."""
        size = self._config.block_tokens
        sealed = request.num_computed_tokens // size
        request.num_computed_tokens += num_new_tokens
        full = request.num_computed_tokens // size
        if self._config.enable_prefix_caching and full > sealed:
            for index, content in enumerate(request.hashes(full, size)[sealed:], start=sealed):
                self._pool.seal(request.key, index, content)

    def release(self, request: Request) -> None:
        """Takes all blocks of a request back."""
        request.block_ids = ()
        self._pool.release(request.key)

    def preempt(self, request: Request) -> None:
        """Takes all blocks of a running request back; what is not found again will be computed again."""
        self.release(request)
        request.num_computed_tokens = 0

    def take_copies(self) -> list[BlockCopy]:
        """The block copies decided since the last call, in order."""
        return self._pool.take_copies()

    def _cached_prefix(self, request: Request) -> list[int]:
        """Blocks of the longest known prefix, at least one token short of the whole: something must be computed."""
        if not self._config.enable_prefix_caching:
            return []
        size = self._config.block_tokens
        return self._pool.match(request.hashes((request.num_tokens - 1) // size, size))

    def _blocks_to_open(self, request: Request) -> int:
        needed = self._config.blocks_for(request.num_tokens)
        if request.kind is RequestKind.PREFILL:
            return needed
        longest = min(request.num_prompt_tokens + request.sampling.max_tokens, self._config.max_model_len)
        # The last token's KV is never computed: nothing comes after it.
        return min(needed + 1, self._config.blocks_for(longest - 1))

    def _first_written(self, request: Request) -> int:
        """Index of the block the next token goes to. No later block of a table is ever shared before it is full."""
        return request.num_computed_tokens // self._config.block_tokens


def _num_shared_tokens(parent: Request, child: Request) -> int:
    """Leading tokens whose KV the parent has and the child can use: all but its last one, which must be computed."""
    if parent.root != child.root:
        return 0
    most = min(parent.num_computed_tokens, child.num_tokens - 1)
    if parent.tokens[:most] == child.tokens[:most]:
        return most
    pairs = zip(parent.tokens, child.tokens, strict=False)
    return next(index for index, (ours, theirs) in enumerate(pairs) if ours != theirs)
