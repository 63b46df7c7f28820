"""What the router remembers of each worker's prefix cache: a hint that lowers a cost, never a pin."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from router.events import WorkerKey


class PrefixMemory:
    """Block hashes recently sent to each worker, least recently used dropped first.

    It may be wrong in both directions (a worker evicts on its own): a wrong hint costs time, never a token.
    """

    def __init__(self, max_blocks_per_worker: int = 65_536) -> None:
        self._max_blocks = max_blocks_per_worker
        self._seen: dict[WorkerKey, OrderedDict[bytes, None]] = {}

    def record(self, worker: WorkerKey, hashes: Iterable[bytes]) -> None:
        seen = self._seen.setdefault(worker, OrderedDict())
        for each in hashes:
            seen[each] = None
            seen.move_to_end(each)
        while len(seen) > self._max_blocks:
            seen.popitem(last=False)

    def leading_blocks(self, worker: WorkerKey, hashes: Sequence[bytes]) -> int:
        """How many of the first blocks this worker has been sent before."""
        seen = self._seen.get(worker)
        if seen is None:
            return 0
        for index, each in enumerate(hashes):
            if each not in seen:
                return index
        return len(hashes)

    def forget(self, worker: WorkerKey) -> None:
        self._seen.pop(worker, None)
