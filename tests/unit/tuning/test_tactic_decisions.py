"""Buckets and choices, as pure functions of what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tuning.decision import ALL_ROWS, MARGIN, Trial, best_for_all, decide, fastest_by_bucket
from engine.tuning.shapes import BUCKETS, Shape, bucket_of

SHAPE = Shape("linear", 64, 32)
NAMES = ("a", "b", "c")
times = st.floats(1e-6, 1.0)
measured = st.dictionaries(
    st.tuples(st.sampled_from(NAMES), st.sampled_from((1, 8, 64))), st.one_of(st.none(), times), min_size=1
).map(lambda found: [Trial(name, bucket, time, "" if time else "failed") for (name, bucket), time in found.items()])


@given(st.integers(1, 1 << 20))
def test_a_bucket_holds_its_rows_and_wastes_less_than_half(rows):
    bucket = bucket_of(rows)
    assert bucket in BUCKETS
    assert bucket_of(bucket) == bucket
    if rows <= BUCKETS[-1]:
        assert rows <= bucket < 2 * rows


@given(st.integers(1, 1 << 14), st.integers(1, 1 << 14))
def test_more_rows_never_get_a_smaller_bucket(one, other):
    assert (bucket_of(min(one, other))) <= bucket_of(max(one, other))


def test_no_rows_have_no_bucket():
    with pytest.raises(ValueError, match="at least 1"):
        bucket_of(0)


@given(measured)
def test_the_fastest_of_each_bucket_is_taken_or_an_earlier_one_almost_as_fast(trials):
    chosen = dict(fastest_by_bucket(NAMES, trials))
    for bucket in {trial.bucket for trial in trials}:
        found = {trial.tactic: trial.seconds for trial in trials if trial.bucket == bucket and trial.seconds}
        assert (bucket in chosen) == bool(found)
        if found:
            name, best = chosen[bucket], min(found.values())
            assert found[name] <= best * (1 + MARGIN)
            assert all(found[other] > best * (1 + MARGIN) for other in NAMES[: NAMES.index(name)] if other in found)


@given(measured)
def test_one_for_all_works_in_every_bucket_and_no_other_is_clearly_better(trials):
    buckets = {trial.bucket for trial in trials}
    found = {(trial.tactic, trial.bucket): trial.seconds for trial in trials if trial.seconds}
    whole = [name for name in NAMES if all((name, bucket) in found for bucket in buckets)]
    chosen = best_for_all(NAMES, trials)
    if not whole:
        assert chosen is None
        return
    assert chosen in whole
    best = {bucket: min(found[name, bucket] for name in whole) for bucket in buckets}

    def cost(name):
        return sum(found[name, bucket] / best[bucket] for bucket in buckets) / len(buckets)

    assert cost(chosen) <= min(map(cost, whole)) * (1 + MARGIN) * (1 + 1e-12)


@given(measured, st.permutations([0, 1, 2]))
def test_the_order_of_measuring_changes_no_choice(trials, order):
    mixed = [trials[index] for index in order if index < len(trials)] + trials[3:]
    for mode in ("fast", "deterministic"):
        one, other = (decide(SHAPE, mode, dict.fromkeys(NAMES, True), each) for each in (trials, mixed))
        assert one.chosen == other.chosen


@given(measured)
def test_deterministic_mode_takes_one_tactic_for_any_rows_and_only_of_those_that_keep_them(trials):
    keeps = {"a": False, "b": True, "c": False}
    entry = decide(SHAPE, "deterministic", keeps, trials)
    assert entry.chosen in ((), ((ALL_ROWS, "b"),))
    assert entry.tried == NAMES


def test_noise_below_the_margin_does_not_part_two_workers():
    first = [Trial("a", 1, 1.00e-3), Trial("b", 1, 0.99e-3)]
    second = [Trial("a", 1, 0.98e-3), Trial("b", 1, 1.00e-3)]
    assert fastest_by_bucket(NAMES, first) == fastest_by_bucket(NAMES, second) == ((1, "a"),)
    assert best_for_all(NAMES, first) == best_for_all(NAMES, second) == "a"
