"""Searches, choices and scored prompts in random company: each ends as it would alone, and nothing is left behind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from engine_bench import Bench, ErraticClock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.config import EngineConfig
from wire.sampling import BeamSearch, EarlyStopping

BLOCK, LONGEST = 4, 28
Key = tuple[int, int]


@cache
def prompt_of(length: int) -> tuple[int, ...]:
    return tuple((5 * i * i + 2 * i + 1) % 59 for i in range(length))


def outcome(bench: Bench, key: Key) -> Any:
    return bench.beams.get(key), bench.answer(key), bench.scored.get(key)


@cache
def alone(length: int, sampling: tuple[tuple[str, Any], ...]) -> Any:
    roomy = EngineConfig(num_blocks=80, block_tokens=BLOCK, max_model_len=LONGEST, enable_prefix_caching=False)
    bench = Bench(roomy)
    key = bench.submit(prompt_of(length), **dict(sampling))
    bench.run()
    return outcome(bench, key)


@dataclass
class Asked:
    expected: Any
    is_gone: bool = False


class BeamMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[Key, Asked] = {}

    @initialize(
        num_blocks=st.integers(15, 40),
        seats=st.integers(3, 6),
        caching=st.booleans(),
        host=st.booleans(),
        timed=st.booleans(),
    )
    def begin(self, num_blocks: int, seats: int, caching: bool, host: bool, timed: bool) -> None:
        """Three beams of up to 7 blocks each, of which a cache lets them share the prompt's 3."""
        config = EngineConfig(
            num_blocks=num_blocks if caching or host else max(21, num_blocks),
            block_tokens=BLOCK,
            max_model_len=LONGEST,
            max_num_seqs=seats,
            max_num_batched_tokens=12,
            max_scored_tokens=BLOCK,
            enable_prefix_caching=caching or host,
            num_host_blocks=10 if host else 0,
        )
        self.bench = Bench(config, clock=ErraticClock(num_blocks, longest_s=2.0))
        if timed:
            self.bench.engine.warm_up()

    def _ask(self, length: int, sampling: tuple[tuple[str, Any], ...], priority: int) -> None:
        key = self.bench.submit(prompt_of(length), priority=priority, **dict(sampling))
        self.asked[key] = Asked(alone(length, sampling))

    @rule(
        length=st.integers(1, 14),
        width=st.integers(1, 3),
        max_tokens=st.integers(1, 13),
        early_stopping=st.sampled_from(EarlyStopping),
        ends=st.sampled_from([(), (3, 11, 29), tuple(range(0, 58, 4))]),
        scored=st.sampled_from([None, 1]),
        priority=st.integers(-1, 1),
    )
    def search(self, length, width, max_tokens, early_stopping, ends, scored, priority):
        beam = BeamSearch(width=width, num_answers=width, early_stopping=early_stopping)
        sampling = {"beam": beam, "max_tokens": max_tokens, "stop_token_ids": ends, "prompt_logprobs": scored}
        self._ask(length, tuple(sampling.items()), priority)

    @rule(
        length=st.integers(1, 14),
        max_tokens=st.integers(1, 13),
        choice=st.integers(0, 2),
        scored=st.sampled_from([None, 0, 2]),
        priority=st.integers(-1, 1),
    )
    def draw(self, length, max_tokens, choice, scored, priority):
        sampling = {
            "temperature": 0.9,
            "seed": 3,
            "choice": choice,
            "max_tokens": max_tokens,
            "prompt_logprobs": scored,
        }
        self._ask(length, tuple(sampling.items()), priority)

    @rule(count=st.integers(1, 9))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.bench.step()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.asked)))
        self.asked[key].is_gone |= self.bench.engine.abort(key)

    @invariant()
    def nothing_failed(self) -> None:
        if self.asked:
            assert not self.bench.failed

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        self.bench.run()
        for key, asked in self.asked.items():
            if not asked.is_gone:
                assert outcome(self.bench, key) == asked.expected
        assert self.bench.pool.num_free == self.bench.pool.num_blocks


TestBeamMachine = BeamMachine.TestCase
TestBeamMachine.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
