"""A prefill pool and a decode pool wait for each other's memory, and every request ends all the same."""

from __future__ import annotations

import heapq
import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from played_scheduler import PlayedScheduler, request_of

from engine.config import EngineConfig
from engine.scheduling.request import Request, RequestKey, RequestKind, RequestStatus

LONGEST, BLOCK = 40, 4
LEASE_TICKS = 40


class TwoPools:
    """The order of events is the real one: reserve on D, compute on P, copy, activate, release.

    Every message and copy takes a random time. A request given up at D takes its copies some time to end, and P
    learns of it by the end of the lease alone.
    """

    def __init__(self, seed: int, prefill_blocks: int, decode_blocks: int, host_blocks: int, abort_rate: float) -> None:
        sizes = {"block_tokens": BLOCK, "max_model_len": LONGEST, "max_num_batched_tokens": 12, "max_num_seqs": 4}
        self.random = random.Random(seed)
        self.prefill = PlayedScheduler(EngineConfig(num_blocks=prefill_blocks, **sizes))
        self.decode = PlayedScheduler(EngineConfig(num_blocks=decode_blocks, num_host_blocks=host_blocks, **sizes))
        self.decode.on_reserved = self._reserved
        self.prefill.on_prefilled = self._prefilled
        self.abort_rate = abort_rate
        self.ended: set[RequestKey] = set()
        self.fetching: set[RequestKey] = set()
        self.tick = 0
        self._due: list[tuple[int, int, object]] = []
        self._order = itertools.count()

    def submit(self, key: RequestKey, num_tokens: int, max_tokens: int, priority: int, is_local: bool) -> None:
        kind = RequestKind.GENERATE if is_local else RequestKind.RESERVE
        self.decode.scheduler.submit(request_of(key, num_tokens, max_tokens, kind, priority=priority))
        if self.random.random() < self.abort_rate:
            self._later(lambda: self._abort(key), most=60)

    def run(self, keys: set[RequestKey]) -> None:
        """Until every request has ended and both pools are empty."""
        while keys - self.ended - self.decode.done.keys() or self.prefill.scheduler.requests:
            self.tick += 1
            assert self.tick < 6000, self._who_waits()
            self._deliver()
            for played in (self.prefill, self.decode):
                if played.scheduler.has_work():
                    played.step()

    def settle(self) -> None:
        """The last messages and copies arrive."""
        self.tick += 100
        self._deliver()

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= self.tick:
            heapq.heappop(self._due)[2]()

    def _later(self, action, most=6) -> None:
        heapq.heappush(self._due, (self.tick + self.random.randint(1, most), next(self._order), action))

    def _reserved(self, request: Request) -> None:
        prompt, cached = request.num_tokens, request.num_computed_tokens
        self._later(lambda: self._prefill(request.key, prompt, cached, request.priority))

    def _prefill(self, key: RequestKey, num_tokens: int, cached: int, priority: int) -> None:
        if key in self.ended:
            return
        self.fetching.add(key)
        self.prefill.scheduler.submit(
            request_of(key, num_tokens, 30, RequestKind.PREFILL, skip_tokens=cached, priority=priority)
        )

    def _prefilled(self, request: Request) -> None:
        key = request.key
        if key in self.ended:
            self._later(lambda: self.prefill.scheduler.release_hold(key), most=LEASE_TICKS)
        else:
            self._later(lambda: self._fetched(key))

    def _fetched(self, key: RequestKey) -> None:
        self._later(lambda: self.prefill.scheduler.release_hold(key))
        self.fetching.discard(key)
        request = self.decode.scheduler.requests.get(key)
        if request is not None and request.status is RequestStatus.RESERVED:
            self.decode.scheduler.activate(key, [1])

    def _abort(self, key: RequestKey) -> None:
        if key not in self.decode.scheduler.requests:
            return
        is_fetching = key in self.fetching
        self.ended.add(key)
        self.decode.scheduler.abort(key, draining=is_fetching)
        if is_fetching:
            self._later(lambda: self.decode.scheduler.drained(key), most=20)
            self._later(lambda: self.prefill.scheduler.release_hold(key), most=LEASE_TICKS)

    def _who_waits(self) -> str:
        rows = [
            f"{name} {request.key} {request.kind.value} {request.status.value} "
            f"{request.num_computed_tokens}/{request.num_tokens} in {len(request.block_ids)} blocks"
            for name, played in (("P", self.prefill), ("D", self.decode))
            for request in played.scheduler.requests.values()
        ]
        return "\n".join(["nothing moves any more:", *rows])


loads = st.lists(
    st.tuples(st.integers(1, LONGEST - 1), st.integers(1, 30), st.integers(-2, 2), st.booleans()),
    min_size=1,
    max_size=24,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    loads=loads,
    seed=st.integers(0, 1000),
    prefill_blocks=st.integers(10, 16),
    decode_blocks=st.integers(10, 16),
    host_blocks=st.sampled_from([0, 4, 12]),
    abort_rate=st.sampled_from([0.0, 0.3]),
)
def test_every_request_ends_however_small_the_two_pools_are(
    loads, seed, prefill_blocks, decode_blocks, host_blocks, abort_rate
):
    world = TwoPools(seed, prefill_blocks, decode_blocks, host_blocks, abort_rate)
    keys = {(index + 1, 1) for index in range(len(loads))}
    for key, load in zip(sorted(keys), loads, strict=True):
        world.submit(key, *load)
    world.run(keys)
    world.settle()
    assert world.decode.pool.num_free == decode_blocks
    assert world.prefill.pool.num_free == prefill_blocks
    assert not world.decode.scheduler.requests
