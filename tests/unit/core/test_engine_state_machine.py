"""Random events over the engine: nothing leaks, no block is in two states, every request ends as it would alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ahead_model import AheadModel
from engine_bench import EOS, Bench, ErraticClock
from history_model import HistoryModel
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.blocks.block_pool import BlockState
from engine.config import EngineConfig
from engine.scheduling.request import RequestKind, RequestStatus
from wire.sampling import FinishReason

BLOCKS, BLOCK, LONGEST = 11, 4, 40
Key = tuple[int, int]
Sampling = tuple[tuple[str, object], ...]


@dataclass
class Asked:
    """What was asked for, and what must come of it."""

    kind: RequestKind
    shape: tuple[int, int]
    sampling: Sampling
    answer: tuple[int, ...]
    """Whole, tokens emitted before included."""
    started_at: int
    """How many of them were known when this engine began to emit."""
    is_gone: bool = False
    """Aborted."""


@cache
def prompt_of(shape: tuple[int, int]) -> tuple[int, ...]:
    """Prompts that share prefixes: `shape` is (length, variant), variants differ in the last token alone."""
    length, variant = shape
    return (*((5 * i * i + i) % 59 for i in range(length - 1)), variant)


@cache
def alone(shape: tuple[int, int], sampling: Sampling, emitted: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The whole answer of a request that has the engine to itself."""
    roomy = EngineConfig(
        num_blocks=10,
        block_tokens=BLOCK,
        max_model_len=LONGEST,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        eos_token_ids=(EOS,),
        enable_prefix_caching=False,
    )
    return (*emitted, *Bench(roomy).generate(prompt_of(shape), emitted=emitted, **dict(sampling)))


class EngineMachine(RuleBasedStateMachine):
    """Beside the engine stands what a worker would know: who was reserved, who is held, whose copy is outstanding."""

    operations = 0

    @initialize(
        host_blocks=st.sampled_from([0, 3, 12]),
        copy_cost=st.integers(0, 2),
        caching=st.booleans(),
        step_ms=st.sampled_from([None, 1.0, 30.0, 300.0]),
        ahead=st.booleans(),
    )
    def start(self, host_blocks, copy_cost, caching, step_ms, ahead):
        """`step_ms`: what a step may take, by a clock whose steps take anything up to 0.1 s; None for no such bound.
        `ahead`: on a model that runs ahead."""
        config = EngineConfig(
            num_blocks=BLOCKS,
            block_tokens=BLOCK,
            max_model_len=LONGEST,
            max_num_seqs=5,
            max_num_batched_tokens=9,
            eos_token_ids=(EOS,),
            enable_prefix_caching=caching or host_blocks > 0,
            num_host_blocks=host_blocks,
            block_copy_cost=copy_cost,
            ageing_steps=4,
            max_step_ms=step_ms or 1.0,
            max_mixed_step_ms=step_ms or 1.0,
        )
        model = AheadModel(HistoryModel()) if ahead else HistoryModel()
        self.bench = Bench(config, model, clock=ErraticClock(seed=host_blocks, longest_s=0.1))
        if step_ms is not None:
            self.bench.engine.warm_up()
        self.asked: dict[Key, Asked] = {}

    @property
    def _requests(self):
        return self.bench.engine._scheduler.requests

    def _in(self, *statuses: RequestStatus) -> list[Key]:
        return [request.key for request in self._requests.values() if request.status in statuses]

    @rule(
        kind=st.sampled_from([*RequestKind, RequestKind.GENERATE]),
        shape=st.tuples(st.integers(1, 30), st.integers(0, 2)),
        max_tokens=st.integers(1, 24),
        sampled=st.booleans(),
        logprobs=st.sampled_from([None, None, None, 1]),
        priority=st.integers(-2, 2),
        emitted=st.integers(0, 3),
    )
    def submit(self, kind, shape, max_tokens, sampled, logprobs, priority, emitted):
        sampling = (("max_tokens", max_tokens), ("temperature", 0.8 if sampled else 0.0), ("seed", 7))
        sampling += (("logprobs", logprobs),)
        answer = alone(shape, sampling)
        start = min(emitted, len(answer) - 1)
        prompt = prompt_of(shape)
        key = self.bench.submit(prompt, emitted=answer[:start], kind=kind, priority=priority, **dict(sampling))
        self.asked[key] = Asked(kind, shape, sampling, answer, start)

    @precondition(lambda self: self._requests)
    @rule(data=st.data(), keep=st.integers(0, 24), token=st.integers(0, 58), parent_ends=st.booleans())
    def fork(self, data, keep, token, parent_ends):
        """A branch that leaves its parent somewhere in the answer."""
        parent = data.draw(st.sampled_from(sorted(self._requests)))
        theirs = self.asked[parent]
        limit = min(dict(theirs.sampling)["max_tokens"], LONGEST - len(prompt_of(theirs.shape))) - 1
        emitted = (*theirs.answer[: max(0, min(keep, limit - 1))], token)
        if len(emitted) > limit:
            return
        answer = alone(theirs.shape, theirs.sampling, emitted)
        key = self.bench.fork(parent, prompt_of(theirs.shape), emitted=emitted, **dict(theirs.sampling))
        self.asked[key] = Asked(RequestKind.GENERATE, theirs.shape, theirs.sampling, answer, len(emitted))
        if parent_ends:
            self._abort(parent, draining=False)

    @rule()
    def step(self):
        self.bench.step()

    @rule(count=st.integers(2, 12))
    def step_often(self, count):
        for _ in range(count):
            self.bench.step()

    @precondition(lambda self: self._in(RequestStatus.RESERVED))
    @rule(data=st.data())
    def activate(self, data):
        self._activate(data.draw(st.sampled_from(self._in(RequestStatus.RESERVED))))

    def _activate(self, key):
        """Writes what a peer would have computed into the reserved blocks, then lets the request run."""
        request = self._requests[key]
        reservation = self.bench.reserved[key]
        peer = Bench(EngineConfig(num_blocks=10, block_tokens=BLOCK, max_model_len=LONGEST))
        peer_key = peer.submit(request.tokens, kind=RequestKind.PREFILL, max_tokens=1)
        peer.run()
        for blocks in peer.computed[peer_key]:
            for index, block in enumerate(blocks.block_ids, start=blocks.first_block):
                if index >= reservation.skip_blocks:
                    self.bench.kv_cache[reservation.block_ids[index]] = peer.kv_cache[block]
        asked = self.asked[key]
        self.bench.engine.activate(key, [asked.answer[asked.started_at]])
        asked.started_at += 1

    @precondition(lambda self: self._requests)
    @rule(data=st.data(), draining=st.booleans())
    def abort(self, data, draining):
        self._abort(data.draw(st.sampled_from(sorted(self._requests))), draining)

    def _abort(self, key, draining):
        assert self.bench.engine.abort(key, draining=draining)
        self.asked[key].is_gone = True

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
        EngineMachine.operations += 1
        self.bench.engine.check()

    @invariant()
    def no_step_in_flight_writes_where_a_peer_does(self):
        """Rows on their way for requests that have ended go to blocks that are theirs no more."""
        if self.bench.engine._in_flight is None:
            return
        written = {
            part.block_table[position // BLOCK]
            for part in self.bench.model.batches[-1].slices
            for position in range(part.start, part.start + len(part.token_ids))
        }
        for key in self._in(RequestStatus.RESERVED):
            assert written.isdisjoint(self._requests[key].block_ids)

    @invariant()
    def nothing_emitted_differs(self):
        for key, asked in self.asked.items():
            got = self.bench.answer(key)
            assert tuple(got) == asked.answer[asked.started_at : asked.started_at + len(got)], key
            if got:
                assert self.bench.rows[key][0].seq == asked.started_at

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
        assert not self._requests
        assert not self.bench.failed
        assert self.bench.pool.num_free == BLOCKS
        assert self.bench.pool.count(BlockState.IN_USE) == 0
        host_blocks = self.bench.config.num_host_blocks
        assert self.bench.pool.cache.num_host_room(1) == host_blocks, "nothing is kept for nobody"
        for key, asked in self.asked.items():
            if asked.is_gone:
                continue
            row = self.bench.rows[key][-1]
            assert row.handed_off or row.finish is not FinishReason.NONE
            if not row.handed_off:
                assert row.seq + len(row.tokens) == len(asked.answer)


def test_ten_thousand_operations_on_the_engine_end_every_request_as_it_would_alone():
    EngineMachine.operations = 0
    limits = settings(
        max_examples=260,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(EngineMachine, settings=limits)
    assert EngineMachine.operations >= 10_000
