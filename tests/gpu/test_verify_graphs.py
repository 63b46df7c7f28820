"""Steps in which all sequences have as many rows as drafts to verify: graphs of their own, and no other bits."""

from __future__ import annotations

import kernel_platform
import numpy as np
import pytest
import torch
from device_models import bound, device_decoder, runtime_of
from device_run import PROMPTS, Run
from fake_runtime import FakeRuntime

from engine.device.buckets import Buckets, GraphKey

DRAFTS = [[40, 41, 42], [50, 51, 52], [60, 61, 62]]
VERIFYING = Buckets((1, 4), (64,), (1, 3))


@pytest.fixture
def make(platform):
    def model(buckets: Buckets | None):
        return bound(device_decoder(platform, runtime_of(platform), buckets), platform, 16)

    return model


def _verified(model, sequences=(0, 1, 2)) -> np.ndarray:
    """Logits of three rows each, behind prompts of different lengths."""
    run = Run(model)
    run.step([(sequence, PROMPTS[sequence]) for sequence in sequences])
    return run.step([(sequence, DRAFTS[sequence]) for sequence in sequences], all_logits=True)


def test_a_replayed_step_of_drafts_has_the_bits_of_a_launched_one_and_of_rows_one_by_one(make):
    replayed = _verified(make(VERIFYING))
    np.testing.assert_array_equal(replayed, _verified(make(None)))
    np.testing.assert_array_equal(replayed[3:6], _verified(make(VERIFYING), (1,)))
    run = Run(make(VERIFYING))
    run.step(list(enumerate(PROMPTS)))
    for row in range(3):
        single = run.step([(sequence, [DRAFTS[sequence][row]]) for sequence in range(3)])
        np.testing.assert_array_equal(replayed[row::3], single)


def test_many_rows_take_the_other_attention_and_keep_the_bits(make):
    """Nine rows of two heads are more than a block of the decode kernel has."""
    longer = [list(range(20 + sequence, 29 + sequence)) for sequence in range(2)]
    found = []
    for buckets in (Buckets((2,), (64,), (1, 9)), None):
        run = Run(make(buckets))
        run.step([(0, PROMPTS[0]), (1, PROMPTS[1])])
        found.append(run.step(list(enumerate(longer)), all_logits=True))
    np.testing.assert_array_equal(*found)


def test_only_the_logits_that_are_wanted_come_back(make):
    run = Run(make(VERIFYING))
    run.step(list(enumerate(PROMPTS)))
    last = run.step(list(enumerate(DRAFTS)))
    np.testing.assert_array_equal(last, _verified(make(None))[2::3])


def test_rows_that_fill_up_a_graph_of_drafts_store_nothing(make):
    model = make(VERIFYING)
    run = Run(model)
    run.step(list(enumerate(PROMPTS)))
    cache = model._kv_cache  # what is in memory is not for anyone else to see
    before = cache.clone()
    run.step(list(enumerate(DRAFTS)))
    changed = (cache.view(torch.int16) != before.view(torch.int16)).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [1 + 40 // 32, 1 + 4, 1 + 8 + 33 // 32]


def test_a_step_of_drafts_is_replayed_and_one_of_other_lengths_is_launched():
    runtime, platform = FakeRuntime(), kernel_platform.emulated()
    run = Run(bound(device_decoder(platform, runtime, VERIFYING), platform, 16))
    run.step(list(enumerate(PROMPTS)))
    for parts, replays in ((DRAFTS, 1), ([draft[:2] for draft in DRAFTS], 0), ([[1, 2, 3], [1], [2]], 0)):
        runtime.calls.clear()
        run.step(list(enumerate(parts)))
        assert runtime.calls.count("replay") == replays


def test_graphs_of_drafts_are_captured_by_rows_and_counted_before_the_cache_is_sized():
    keys = VERIFYING.common()
    assert [(key.sequences, key.queries) for key in keys] == [(4, 3), (4, 1), (1, 3), (1, 1)]
    assert {key.context for key in keys} == {64}
    runtime, platform = FakeRuntime(), kernel_platform.emulated()
    needs = device_decoder(platform, runtime, VERIFYING).memory_needs(32, 40)
    assert (runtime.captures, needs.later) == (2, 2 * (2 << 20))
    assert Buckets((1,), (64, 256), (1, 3)).all() == [
        GraphKey(1, 3, 256), GraphKey(1, 3, 64), GraphKey(1, 1, 256), GraphKey(1, 1, 64)
    ]  # fmt: skip


def test_without_drafts_there_are_graphs_of_single_rows_alone():
    plain, verifying = Buckets.up_to(8, 4096), Buckets.up_to(8, 4096, verify_rows=5)
    assert {key.queries for key in plain.common()} == {1}
    assert plain.key(3, 5, 100) is None
    assert verifying.key(3, 5, 100) == GraphKey(4, 5, 4096)
    assert verifying.key(3, 2, 100) is None
    assert verifying.largest == GraphKey(8, 5, 4096)
