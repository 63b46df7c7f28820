"""Steps bounded by predicted time: how long they get, who goes first in them, and that nobody starves."""

from __future__ import annotations

import pytest
from engine_bench import ErraticClock
from hypothesis import given, settings
from hypothesis import strategies as st
from played_scheduler import PlayedScheduler, request_of

from engine.config import EngineConfig
from engine.scheduling.request import Request, RequestKind
from engine.scheduling.step_cost import StepCost
from wire.errors import ErrorCode, SpliceError
from wire.sampling import SamplingParams

COST = StepCost((2.0, 1.0, 1e-3, 0.5))
"""In ms, of a step, a token, a pair, a row of logits."""


def played(cost: StepCost | None = COST, **sizes: object) -> PlayedScheduler:
    config = EngineConfig(
        **{"num_blocks": 400, "block_tokens": 16, "max_model_len": 1024, "max_num_batched_tokens": 512, **sizes}  # type: ignore[arg-type]
    )
    return PlayedScheduler(config, cost)


def distinct(key: int, num_tokens: int, max_tokens: int = 20, **rest: object) -> Request:
    """A request that shares no block with another."""
    tokens = [(key * 97 + 7 * index) % 1000 for index in range(num_tokens)]
    return Request((key, 1), tokens, num_tokens, SamplingParams(max_tokens=max_tokens), **rest)  # type: ignore[arg-type]


def lengths(plan) -> dict[int, int]:
    return {part.request.key[0]: part.num_new_tokens for part in plan.scheduled}


def test_a_prompt_alone_is_cut_to_the_time_of_a_step():
    run = played(max_step_ms=250)
    run.scheduler.submit(distinct(1, 900))
    ends = []
    while not run.scheduler.running or run.scheduler.running[0].num_computed_tokens < 900:
        plan = run.step()
        assert COST.predict_ms(plan.work) <= 250
        ends.append(run.scheduler.running[0].num_computed_tokens)
    assert ends == [208, 384, 544, 688, 816, 900], "each as far as fits, to the end of a block"


def test_prompts_get_their_first_tokens_one_after_another():
    run = played(max_step_ms=250, max_mixed_step_ms=150)
    for key in range(1, 9):
        run.scheduler.submit(distinct(key, 32))
    assert [list(lengths(run.step()))[-1] for _ in range(8)] == list(range(1, 9))


def test_short_prompts_share_a_step_that_stays_short():
    run = played(max_step_ms=250, max_mixed_step_ms=150)
    for key in range(1, 9):
        run.scheduler.submit(distinct(key, 16))
    plan = run.step()
    assert lengths(plan) == {1: 16, 2: 16}
    assert COST.predict_ms(plan.work) <= 50


def test_answers_are_held_up_less_for_one_prompt_than_for_many():
    for num_prompts, expected in ((1, 32), (4, 128)):
        run = played(max_step_ms=250, max_mixed_step_ms=150)
        for key in range(1, 4):
            run.scheduler.submit(distinct(key, 10))
        run.step()
        for key in range(11, 11 + num_prompts):
            run.scheduler.submit(distinct(key, 800))
        plan = run.step()
        assert lengths(plan) == {1: 1, 2: 1, 3: 1, 11: expected}


def test_no_step_of_mixed_work_is_predicted_to_be_longer_than_it_may():
    run = played(max_step_ms=90, max_mixed_step_ms=60)
    for key in range(1, 30):
        run.scheduler.submit(distinct(key, 7 + 31 * key))
    while run.scheduler.requests:
        plan = run.step()
        gives_tokens = any(part.completes for part in plan.scheduled)
        prompts = [part for part in plan.scheduled if part.num_new_tokens > 1]
        if len(prompts) > 1 or (prompts and prompts[0].num_new_tokens > 16):
            assert COST.predict_ms(plan.work) <= (90 if len(prompts) == 1 or not gives_tokens else 60)


def test_one_block_goes_in_every_step_however_slow_the_machine():
    run = played(StepCost((1e6, 1e6, 1e6, 1e6)), max_num_seqs=4)
    for key in range(1, 4):
        run.scheduler.submit(distinct(key, 10, max_tokens=200))
    for _ in range(3):
        run.step()
    run.scheduler.submit(distinct(4, 70))
    assert [lengths(run.step()).get(4) for _ in range(5)] == [16, 16, 16, 16, 6]


def test_without_a_cost_only_tokens_bound_a_step():
    run = played(None)
    run.scheduler.submit(distinct(1, 900))
    assert lengths(run.step()) == {1: 512}


def test_prompt_logprobs_cost_a_row_of_logits_for_each_token():
    run = played(StepCost((1.0, 0.1, 1e-6, 2.0)), max_step_ms=100)
    scored = SamplingParams(max_tokens=4, prompt_logprobs=0)
    run.scheduler.submit(Request((1, 1), list(range(600)), 600, scored))
    assert lengths(run.step()) == {1: 32}


def test_a_prompt_waits_for_the_blocks_another_is_computing_and_no_longer():
    run = played(max_step_ms=130, max_mixed_step_ms=130)
    shared = list(range(320))
    for key in range(1, 9):
        tokens = [*shared, *range(900 - key, 880 - key, -1)]
        run.scheduler.submit(Request((key, 1), tokens, len(tokens), SamplingParams(max_tokens=40)))
    total = 0
    while not any(len(r.tokens) > 340 for r in run.scheduler.requests.values()):
        total += sum(lengths(run.step()).values())
    for _ in range(8):
        total += sum(part.num_new_tokens for part in run.step().scheduled if part.num_new_tokens > 1)
    assert total == 320 + 8 * 20, "the shared blocks are computed once, and each end of its own"


def test_reservations_pass_a_prompt_that_waits_for_another():
    run = played(max_step_ms=60, max_mixed_step_ms=60)
    tokens = list(range(200))
    for key in (1, 2):
        run.scheduler.submit(Request((key, 1), list(tokens), 200, SamplingParams(max_tokens=4)))
    run.scheduler.submit(distinct(3, 40, kind=RequestKind.RESERVE))
    plan = run.step()
    assert list(lengths(plan)) == [1]
    assert [request.key for request in plan.reserved] == [(3, 1)]


def test_whoever_waits_for_a_block_goes_on_when_its_computation_is_given_up():
    run = played(max_step_ms=60, max_mixed_step_ms=60)
    tokens = list(range(200))
    for key in (1, 2):
        run.scheduler.submit(Request((key, 1), list(tokens), 200, SamplingParams(max_tokens=4)))
    run.step()
    run.scheduler.abort((1, 1))
    assert list(lengths(run.step())) == [2]


def test_waiting_for_others_has_an_end_even_if_they_all_fail():
    run = played(max_step_ms=1e4, max_mixed_step_ms=1e4)
    tokens = list(range(64))
    run.scheduler.submit(Request((1000, 1), list(tokens), 64, SamplingParams(max_tokens=4), priority=1))
    for key in range(1, 10):
        run.scheduler.submit(Request((key, 1), list(tokens), 64, SamplingParams(max_tokens=4), priority=0))
        plan = run.scheduler.schedule()
        if (1000, 1) in {part.request.key for part in plan.scheduled}:
            break
        for part in plan.scheduled:
            run.scheduler.fail(part.request)
        run.scheduler.check()
    assert key == 5, "it waits as many steps as its prompt has blocks"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 12), st.integers(-1, 1)), min_size=1, max_size=14),
    step_ms=st.sampled_from([1.0, 20.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_everybody_finishes_whatever_the_clock_says(shapes, step_ms, seed):
    """Prices that are taught nonsense bound the steps otherwise; every request ends all the same."""
    cost, clock = StepCost(COST.prices), ErraticClock(seed, 0.5)
    run = played(cost, num_blocks=30, max_model_len=256, max_num_seqs=5, max_step_ms=step_ms, num_host_blocks=7)
    for key, (length, max_tokens, priority) in enumerate(shapes, start=1):
        run.scheduler.submit(request_of((key, 1), length, max_tokens, priority=priority))
    for _ in range(4000):
        if not run.scheduler.requests:
            return
        plan = run.step()
        if plan.scheduled:
            cost.observe(plan.work, -1e3 * (clock() - clock()))
    raise AssertionError(f"{len(run.scheduler.requests)} requests are left")


@pytest.mark.parametrize("name", ["max_step_ms", "max_mixed_step_ms"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_times_that_cannot_be_are_refused(name, value):
    with pytest.raises(SpliceError) as caught:
        EngineConfig(num_blocks=9, max_model_len=10, **{name: value})
    assert (caught.value.code, caught.value.param) == (ErrorCode.BAD_SETTING, name)


def test_an_engine_that_was_warmed_up_bounds_its_steps_and_goes_on_learning(make_bench):
    """The clock advances by 10 ms a reading: every step seems to take as long, whatever it computes."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.010
        return now[0]

    for warm in (False, True):
        bench = make_bench(max_step_ms=5.0, clock=clock)
        if warm:
            bench.engine.warm_up()
        bench.submit(list(range(50)))
        before = bench.engine._scheduler.cost
        prices = before.prices if before is not None else ()
        bench.step()
        assert [len(part.token_ids) for part in bench.model.batches[-1].slices] == ([4] if warm else [50])
        assert (bench.engine.expected_step_s > 0) is warm
        if before is not None:
            bench.run()
            assert before.prices != prices
