"""The engine over a decoder on a device: one answer under every schedule, drawn where the logits lie."""

from __future__ import annotations

import pytest
from device_models import device_decoder, runtime_of

from engine.device.buckets import Buckets
from engine.device.kv_memory import DeviceKVCache

pytest.importorskip("engine._sampling", reason="the engine's own native modules are not built here")

from engine.blocks.block_pool import BlockPool, ListGenerations
from engine.config import EngineConfig
from engine.engine import Engine
from engine.scheduling.request import Request
from wire.sampling import SamplingParams

PROMPT = [(7 * i * i + 3 * i + 1) % 300 for i in range(37)]
DRAWN = {"seed": 11, "temperature": 0.9}


class Bench:
    """An engine on a device and what it answered."""

    def __init__(self, platform, **sizes: int) -> None:
        config = EngineConfig(
            **{"num_blocks": 16, "max_model_len": 96, "max_num_seqs": 4, "max_num_batched_tokens": 64, **sizes}
        )
        model = device_decoder(platform, runtime_of(platform), Buckets.up_to(config.max_num_seqs, config.max_model_len))
        cache = DeviceKVCache.zeros(model.kv_layout(config.block_tokens, "auto"), config.num_blocks, platform.device)
        self.pool = BlockPool(
            config.num_blocks, ListGenerations(config.num_blocks), config.num_host_blocks, config.host_min_tokens
        )
        self.engine = Engine(model, cache, config, self.pool)
        self.answers: dict[int, list[int]] = {}
        self.keys = 0

    def submit(self, tokens: list[int], **sampling: object) -> int:
        self.keys += 1
        params = SamplingParams(**{"max_tokens": 4, "ignore_eos": True, **sampling})
        self.engine.submit(Request((self.keys, 1), list(tokens), len(tokens), params))
        return self.keys

    def run(self) -> None:
        while self.engine.has_work():
            output = self.engine.step()
            self.engine.check()
            assert not output.failed
            for row in output.rows:
                self.answers.setdefault(row.key[0], []).extend(row.tokens)

    def answer(self, tokens: list[int], **sampling: object) -> list[int]:
        key = self.submit(tokens, **sampling)
        self.run()
        return self.answers[key]


@pytest.fixture
def make_bench(platform):
    return lambda **sizes: Bench(platform, **sizes)


def test_an_answer_is_the_same_alone_in_company_and_in_chunks(make_bench):
    alone = make_bench().answer(PROMPT, **DRAWN)
    assert len(alone) == 4
    beside = make_bench()
    others = [beside.submit(PROMPT[: 9 * i + 2], temperature=0.0) for i in range(2)]
    key = beside.submit(PROMPT, **DRAWN)
    beside.run()
    assert beside.answers[key] == alone
    assert all(len(beside.answers[other]) == 4 for other in others)
    assert make_bench(max_num_batched_tokens=33, max_num_seqs=2).answer(PROMPT, **DRAWN) == alone


def test_an_answer_is_the_same_from_cached_blocks_and_after_preemption(make_bench):
    long, small = {**DRAWN, "max_tokens": 20}, {"block_tokens": 16, "max_num_seqs": 2}
    prompts, roomy = [PROMPT[:14], PROMPT[20:34]], make_bench(**small)
    alone = [roomy.answer(prompt, **long) for prompt in prompts]
    cached = roomy.answer([*prompts[0], *alone[0][:4]], **{**DRAWN, "max_tokens": 4})
    assert cached == alone[0][4:8]
    assert roomy.engine.stats.prefix_hit_tokens > 0
    tight = make_bench(num_blocks=4, num_host_blocks=4, max_model_len=64, block_copy_cost=0, **small)
    keys = [tight.submit(prompt, **long) for prompt in prompts]
    tight.run()
    assert tight.engine.stats.swapped_in_blocks > 0
    assert [tight.answers[key] for key in keys] == alone


def test_warm_up_prices_steps_that_the_device_has_finished(make_bench):
    bench, short = make_bench(max_num_seqs=2), PROMPT[:5]
    bench.engine.warm_up()
    assert bench.answer(short, **DRAWN) == make_bench(max_num_seqs=2).answer(short, **DRAWN)
    assert bench.engine.expected_step_s > 0
