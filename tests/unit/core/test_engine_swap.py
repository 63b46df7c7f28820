"""What a preempted request computed is kept on the host and goes on from there."""

from __future__ import annotations

import pytest

from engine.blocks.block_pool import BlockPool, ListGenerations
from engine.config import EngineConfig
from engine.engine import Engine
from wire.errors import ErrorCode, SpliceError

RUN = {"ignore_eos": True, "max_tokens": 30}
PROMPTS = [[index, 1, 2, 3, 4, 5, 6] for index in range(4)]
TIGHT = {"num_blocks": 14, "max_model_len": 56}


def run(bench):
    keys = [bench.submit(prompt, **RUN) for prompt in PROMPTS]
    bench.run()
    return [bench.answer(key) for key in keys]


def num_computed(bench):
    return sum(len(part.token_ids) for batch in bench.model.batches for part in batch.slices)


@pytest.fixture
def alone(make_bench):
    return [make_bench().generate(prompt, **RUN) for prompt in PROMPTS]


def test_a_preempted_request_computes_no_token_twice(make_bench, alone):
    bench = make_bench(**TIGHT, num_host_blocks=40, block_copy_cost=0)
    assert run(bench) == alone
    assert bench.engine.stats.preemptions > 0
    assert bench.engine.stats.swapped_in_blocks > 0
    assert num_computed(bench) == sum(len(prompt) + 30 - 1 for prompt in PROMPTS)


def test_without_host_blocks_it_computes_them_again(make_bench, alone):
    bench = make_bench(**TIGHT)
    assert run(bench) == alone
    assert bench.engine.stats.swapped_out_blocks == 0
    assert num_computed(bench) > sum(len(prompt) + 30 - 1 for prompt in PROMPTS)


@pytest.mark.parametrize("num_host_blocks", [1, 2, 3, 5, 8, 13])
def test_a_host_that_is_too_small_for_all_changes_no_token(make_bench, alone, num_host_blocks):
    bench = make_bench(**TIGHT, num_host_blocks=num_host_blocks)
    assert run(bench) == alone
    assert bench.pool.cache.num_host_used <= num_host_blocks


def test_copying_that_costs_more_than_computing_is_not_chosen(make_bench, alone):
    cheap = make_bench(**TIGHT, num_host_blocks=40, block_copy_cost=1)
    dear = make_bench(**TIGHT, num_host_blocks=40, block_copy_cost=2)  # out and back: 4 tokens, a block's worth
    assert run(cheap) == run(dear) == alone
    assert num_computed(cheap) < num_computed(dear)


def test_what_is_kept_for_a_preempted_request_outlives_what_is_kept_in_case(make_bench):
    bench = make_bench(**TIGHT, num_host_blocks=8)
    old, young = (bench.submit(prompt, **RUN) for prompt in PROMPTS[:2])
    for _ in range(25):
        bench.step()
    assert bench.engine.stats.preemptions == 1
    kept = bench.engine._scheduler.requests[young].kept
    assert kept
    bench.run()
    assert bench.engine._scheduler.requests == {}
    assert [bench.rows[key][-1].finish for key in (old, young)]
    cache = bench.pool.cache
    assert {cache.find(name).level for name in kept if cache.find(name)} <= {0}, "and is ordinary once it has gone on"


def test_an_aborted_request_leaves_nothing_kept(make_bench):
    bench = make_bench(**TIGHT, num_host_blocks=8)
    keys = [bench.submit(prompt, **RUN) for prompt in PROMPTS]
    while not any(request.kept for request in bench.engine._scheduler.requests.values()):
        bench.step()
    for key in keys:
        bench.engine.abort(key)
        bench.engine.check()
    assert bench.pool.cache.num_host_room(1) == 8
    assert bench.pool.num_free == 14


def test_finished_prompts_move_to_the_host_and_back(make_bench):
    bench = make_bench(num_blocks=14, max_model_len=56, num_host_blocks=20)
    prompt = list(range(31))
    cold = bench.generate(prompt, **RUN)
    bench.generate(list(range(59, 20, -1)), max_tokens=10, ignore_eos=True)
    assert bench.pool.cache.num_host_used > 0
    key = bench.submit(prompt, **RUN)
    bench.run()
    assert bench.rows[key][0].cached_tokens == 30
    assert bench.answer(key) == cold


def test_host_blocks_without_a_prefix_cache_are_refused():
    with pytest.raises(SpliceError) as caught:
        EngineConfig(num_blocks=9, max_model_len=10, num_host_blocks=3, enable_prefix_caching=False)
    assert (caught.value.code, caught.value.param) == (ErrorCode.BAD_SETTING, "num_host_blocks")
    with pytest.raises(SpliceError, match="0 or more"):
        EngineConfig(num_blocks=9, max_model_len=10, num_host_blocks=-1)


def test_an_engine_refuses_a_pool_with_another_number_of_host_blocks(make_bench):
    bench = make_bench()
    with pytest.raises(SpliceError, match="same number"):
        Engine(bench.model, bench.kv_cache, bench.config, BlockPool(200, ListGenerations(200), 7))
