"""Predictions of a step's duration: what they learn, how soon, and what does not mislead them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.scheduling.step_cost import StepCost, StepWork

TRUE = StepCost((3.2, 0.6, 6e-4, 0.5))


def chunk(num_tokens: int, start: int, num_logit_rows: int = 0) -> StepWork:
    return StepWork(num_tokens, num_tokens * start + num_tokens * (num_tokens + 1) // 2, num_logit_rows)


def decoding(num_rows: int, context: int) -> StepWork:
    return StepWork(num_rows, num_rows * context, num_rows)


SMALL = [chunk(1, 0, 1), decoding(8, 33), chunk(32, 0), chunk(16, 512)]
OTHERS = [chunk(512, 0), chunk(128, 900), decoding(16, 1000), chunk(64, 300, 1)]


def worst_ratio(cost: StepCost, slowness: float = 1.0) -> float:
    ratios = [cost.predict_ms(work) / (slowness * TRUE.predict_ms(work)) for work in (*SMALL, *OTHERS)]
    return max(*ratios, *(1 / ratio for ratio in ratios))


def random_work(rng: random.Random) -> StepWork:
    if rng.random() < 0.7:
        return decoding(rng.randint(1, 16), rng.randint(1, 1000))
    return chunk(rng.choice([32, 64, 96, 128]), rng.randint(0, 900), rng.randint(0, 1))


def test_four_small_steps_tell_what_large_ones_take():
    assert worst_ratio(StepCost.fitted([(work, TRUE.predict_ms(work)) for work in SMALL])) < 1.01


def test_one_step_alone_gives_an_idea_of_the_others():
    cost = StepCost.fitted([(SMALL[0], TRUE.predict_ms(SMALL[0]))])
    assert worst_ratio(cost) < 4


def test_a_machine_that_becomes_slower_is_noticed_though_steps_are_interrupted():
    rng = random.Random(4)
    cost = StepCost(TRUE.prices)
    for _ in range(300):
        work = random_work(rng)
        cost.observe(work, 2 * TRUE.predict_ms(work) * rng.choice([1, 1, 1, 1, 1, 1.05, 1.2, 4]))
    assert worst_ratio(cost, slowness=2) < 1.5


def test_one_interrupted_step_teaches_little():
    cost = StepCost(TRUE.prices)
    cost.observe(chunk(64, 100), 100 * TRUE.predict_ms(chunk(64, 100)))
    assert worst_ratio(cost) < 1.2


def test_a_prediction_that_is_right_changes_nothing():
    cost = StepCost(TRUE.prices)
    for work in (*SMALL, *OTHERS):
        cost.observe(work, TRUE.predict_ms(work))
    assert cost.prices == pytest.approx(TRUE.prices, rel=1e-12)


def test_a_clock_that_stood_still_teaches_nothing():
    cost = StepCost(TRUE.prices)
    cost.observe(chunk(64, 100), 0.0)
    cost.observe(chunk(64, 100), -1.0)
    assert cost.prices == TRUE.prices


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    took=st.lists(
        st.tuples(st.integers(1, 4096), st.integers(0, 10**6), st.integers(0, 64), st.floats(1e-6, 1e9)), max_size=60
    )
)
def test_prices_stay_positive_and_equal_for_equal_observations_whatever_is_observed(took):
    costs = [StepCost(TRUE.prices), StepCost(TRUE.prices)]
    for cost in costs:
        for num_tokens, start, rows, ms in took:
            cost.observe(chunk(num_tokens, start, rows), ms)
    assert costs[0].prices == costs[1].prices
    assert all(0 < price < float("inf") for price in costs[0].prices)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(left_ms=st.floats(0.01, 1e5), start=st.integers(0, 10**5), wants_logits=st.booleans())
def test_the_tokens_that_fit_are_the_most_that_fit(left_ms, start, wants_logits):
    count = TRUE.tokens_within(left_ms, start, wants_logits=wants_logits)

    def ms_of(num_tokens: int) -> float:
        work = chunk(num_tokens, start, num_tokens if wants_logits else 0)
        return TRUE.predict_ms(work) - TRUE.prices[0]

    assert ms_of(count) <= left_ms * (1 + 1e-9)
    assert ms_of(count + 1) > left_ms * (1 - 1e-9)


@pytest.mark.parametrize("prices", [(1, 1, 1), (1, 1, 1, 0), (1, 1, -1, 1), (1, 1, 1, float("inf"))])
def test_prices_that_cannot_be_are_refused(prices):
    with pytest.raises(ValueError, match="four positive"):
        StepCost(prices)


def test_nothing_measured_is_nothing_to_fit():
    with pytest.raises(ValueError, match="no step was measured"):
        StepCost.fitted([(SMALL[0], 0.0)])
