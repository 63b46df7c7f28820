"""Random events over the engine: nothing leaks, no block is in two states, every request ends as it would alone."""

from __future__ import annotations

from functools import cache

from engine_bench import EOS, Bench
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.block_pool import BlockState
from engine.config import EngineConfig
from engine.request import RequestKind, RequestStatus
from wire.sampling import FinishReason

BLOCKS, BLOCK, LONGEST = 14, 4, 40
CONFIG = EngineConfig(
    num_blocks=BLOCKS,
    block_tokens=BLOCK,
    max_model_len=LONGEST,
    max_num_seqs=5,
    max_num_batched_tokens=9,
    eos_token_ids=(EOS,),
)


@cache
def prompt_of(shape: tuple[int, int]) -> tuple[int, ...]:
    """Prompts that share prefixes: `shape` is (length, variant), variants differ in the last token alone."""
    length, variant = shape
    return (*((5 * i * i + i) % 59 for i in range(length - 1)), variant)


@cache
def alone(shape: tuple[int, int], sampling: tuple[tuple[str, object], ...]) -> tuple[int, ...]:
    roomy = EngineConfig(
        num_blocks=10,
        block_tokens=BLOCK,
        max_model_len=LONGEST,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        eos_token_ids=(EOS,),
        enable_prefix_caching=False,
    )
    return tuple(Bench(roomy).generate(prompt_of(shape), **dict(sampling)))


class EngineMachine(RuleBasedStateMachine):
    """Beside the engine stands what a worker would know: who was reserved, who is held, whose copy is outstanding."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(CONFIG)
        self.asked: dict[tuple[int, int], tuple[RequestKind, tuple[int, ...]]] = {}
        self.started_at: dict[tuple[int, int], int] = {}
        self.gone: set[tuple[int, int]] = set()

    @rule(
        kind=st.sampled_from(RequestKind),
        shape=st.tuples(st.integers(1, 30), st.integers(0, 2)),
        max_tokens=st.integers(1, 14),
        sampled=st.booleans(),
        priority=st.integers(0, 1),
        emitted=st.integers(0, 3),
    )
    def submit(self, kind, shape, max_tokens, sampled, priority, emitted):
        sampling = {"max_tokens": max_tokens, "temperature": 0.8 if sampled else 0.0, "seed": 7}
        answer = alone(shape, tuple(sampling.items()))
        emitted = min(emitted, len(answer) - 1)
        key = self.bench.submit(prompt_of(shape), emitted=answer[:emitted], kind=kind, priority=priority, **sampling)
        self.asked[key] = (kind, answer)
        self.started_at[key] = emitted

    @rule()
    def step(self):
        self.bench.step()

    @rule(count=st.integers(2, 12))
    def step_often(self, count):
        for _ in range(count):
            self.bench.step()

    def _in(self, *statuses: RequestStatus) -> list[tuple[int, int]]:
        requests = self.bench.engine._scheduler.requests.values()
        return [request.key for request in requests if request.status in statuses]

    @precondition(lambda self: self._in(RequestStatus.RESERVED))
    @rule(data=st.data())
    def activate(self, data):
        self._activate(data.draw(st.sampled_from(self._in(RequestStatus.RESERVED))))

    def _activate(self, key):
        """Writes what a peer would have computed into the reserved blocks, then lets the request run."""
        request = self.bench.engine._scheduler.requests[key]
        reservation = self.bench.reserved[key]
        peer = Bench(EngineConfig(num_blocks=10, block_tokens=BLOCK, max_model_len=LONGEST))
        peer_key = peer.submit(request.tokens, kind=RequestKind.PREFILL, max_tokens=1)
        peer.run()
        for blocks in peer.computed[peer_key]:
            for index, block in enumerate(blocks.block_ids, start=blocks.first_block):
                if index >= reservation.skip_blocks:
                    self.bench.kv_cache[reservation.block_ids[index]] = peer.kv_cache[block]
        first = self.started_at[key]
        self.bench.engine.activate(key, [self.asked[key][1][first]])
        self.started_at[key] = first + 1

    @precondition(lambda self: self.bench.engine._scheduler.requests)
    @rule(data=st.data(), draining=st.booleans())
    def abort(self, data, draining):
        key = data.draw(st.sampled_from(sorted(self.bench.engine._scheduler.requests)))
        assert self.bench.engine.abort(key, draining=draining)
        self.gone.add(key)

    @precondition(lambda self: self._in(RequestStatus.DRAINING))
    @rule(data=st.data())
    def drained(self, data):
        self.bench.engine.drained(data.draw(st.sampled_from(self._in(RequestStatus.DRAINING))))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def release_hold(self, data):
        self.bench.engine.release_hold(data.draw(st.sampled_from(sorted(self.asked))))

    @invariant()
    def books_balance(self):
        self.bench.engine.check()

    @invariant()
    def nothing_emitted_differs(self):
        for key, (_, answer) in self.asked.items():
            got = self.bench.answer(key)
            start = self.started_at[key]
            assert tuple(got) == answer[start : start + len(got)], key
            if got:
                assert self.bench.rows[key][0].seq == start

    def teardown(self):
        """The world outside does its part, and everything ends."""
        for _ in range(400):
            for key in self._in(RequestStatus.RESERVED):
                self._activate(key)
            for key in self._in(RequestStatus.DRAINING):
                self.bench.engine.drained(key)
            for key in self._in(RequestStatus.HELD):
                self.bench.engine.release_hold(key)
            if not self.bench.engine.has_work():
                break
            self.bench.step()
        self.nothing_emitted_differs()
        assert not self.bench.engine._scheduler.requests
        assert not self.bench.failed
        assert self.bench.pool.num_free == BLOCKS
        assert self.bench.pool.count(BlockState.IN_USE) == 0
        for key in self.asked.keys() - self.gone:
            row = self.bench.rows[key][-1]
            assert row.handed_off or row.finish is not FinishReason.NONE
            if not row.handed_off:
                assert row.seq + len(row.tokens) == len(self.asked[key][1])


EngineMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestEngineStateMachine = EngineMachine.TestCase
