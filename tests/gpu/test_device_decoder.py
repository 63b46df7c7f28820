"""A decoder on a device: the model it is meant to be, and one set of bits however its steps are launched."""

from __future__ import annotations

import kernel_platform
import numpy as np
import pytest
import torch
from device_models import bound, device_decoder, reference_decoder, runtime_of
from device_run import BUCKETS, PROMPTS, Run, answers
from fake_runtime import GRAPH_BYTES, MODEL_BYTES, SHARED_BYTES, STEP_BYTES, FakeRuntime

from engine.blocks.kv_cache import KVCache
from engine.device.buckets import Buckets
from engine.device.device_lost import DeviceLost
from engine.device.memory_budget import kv_bytes
from wire.errors import ErrorCode, SpliceError


@pytest.fixture
def make(platform):
    def model(buckets: Buckets | None, runtime=None, blocks: int = 16):
        return bound(device_decoder(platform, runtime or runtime_of(platform), buckets), platform, blocks)

    return model


def test_it_is_the_model_of_the_plain_operations(make):
    plain = reference_decoder()
    plain.bind_kv_cache(KVCache.zeros(plain.kv_layout(32, "auto"), 16))
    for wanted, found in zip(answers(plain), answers(make(BUCKETS)), strict=True):
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert error < 0.03


def test_a_replayed_step_has_the_bits_of_a_launched_one(make):
    for launched, replayed in zip(answers(make(None)), answers(make(BUCKETS)), strict=True):
        np.testing.assert_array_equal(launched, replayed)


def test_a_sequence_has_one_set_of_bits_alone_in_company_and_in_chunks(make):
    together = answers(make(BUCKETS))
    model = make(BUCKETS)
    for sequence, prompt in enumerate(PROMPTS):
        run = Run(model)
        cut = len(prompt) // 3
        run.step([(0, prompt[:cut])])
        alone = [run.step([(0, prompt[cut:])])] + [run.step([(0, [40 + step + sequence])]) for step in range(2)]
        for row, rows in zip(alone, together, strict=True):
            np.testing.assert_array_equal(row[0], rows[sequence])


def test_a_step_of_prompts_and_answers_keeps_their_order(make):
    """Those that decode go first on the device; who asked sees nothing of it."""
    run = Run(make(BUCKETS))
    run.step([(0, PROMPTS[0]), (2, PROMPTS[2])])
    mixed = run.step([(1, PROMPTS[1]), (0, [40]), (2, [42])])
    together = answers(make(BUCKETS))
    np.testing.assert_array_equal(mixed[0], together[0][1])
    np.testing.assert_array_equal(mixed[1], together[1][0])
    np.testing.assert_array_equal(mixed[2], together[1][2])


def test_all_logits_of_a_prompt_are_those_of_its_tokens_one_by_one(make):
    run = Run(make(None))
    every = run.step([(0, PROMPTS[1])], all_logits=True)
    single = Run(make(BUCKETS))
    for token, row in zip(PROMPTS[1], every, strict=True):
        np.testing.assert_array_equal(single.step([(0, [token])])[0], row)


def test_rows_that_fill_up_a_bucket_store_nothing(make, platform):
    model = make(BUCKETS)
    run = Run(model)
    run.step([(0, PROMPTS[0]), (1, PROMPTS[1]), (2, PROMPTS[2])])
    cache = model._kv_cache  # what is in memory is not for anyone else to see
    before = cache.clone()
    run.step([(0, [1]), (1, [2]), (2, [3])])
    changed = (cache.view(torch.int16) != before.view(torch.int16)).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [1 + 40 // 32, 1 + 4, 1 + 8 + 33 // 32]


def test_common_graphs_are_there_before_the_first_step_and_rare_ones_come_when_asked_for(make):
    model = make(BUCKETS)
    keys = [(key.sequences, key.context) for key in model.captured.keys]
    assert keys == [(4, 256), (4, 64), (2, 64), (1, 64)], "that which needs most memory first"
    run = Run(model)
    run.step([(0, PROMPTS[0])])
    run.step([(0, [1])])
    assert len(model.captured.keys) == 4
    run.step([(1, PROMPTS[0] + PROMPTS[2]), (2, PROMPTS[1])])
    run.step([(1, [1]), (2, [2])])
    assert [(key.sequences, key.context) for key in model.captured.keys][4:] == [(2, 256)]


def test_more_sequences_than_any_graph_has_are_launched(make):
    run = Run(make(Buckets((1, 2), (256,))))
    run.step(list(enumerate(PROMPTS)))
    row = run.step([(sequence, [40 + sequence]) for sequence in range(3)])
    np.testing.assert_array_equal(row, answers(make(BUCKETS))[1])


def test_a_step_is_one_copy_to_the_device_and_one_replay():
    runtime = FakeRuntime()
    platform = kernel_platform.emulated()
    run = Run(bound(device_decoder(platform, runtime, BUCKETS), platform, 16))
    runtime.calls.clear()
    run.step([(0, PROMPTS[0]), (1, PROMPTS[1])])
    assert runtime.calls == ["upload"]
    run.step([(1, PROMPTS[2]), (0, [3])])
    for token in range(4):
        run.step([(0, [token])])
    assert [call for call in runtime.calls if call != "wait"] == ["upload"] * 2 + ["upload", "replay"] * 4


def test_memory_of_the_cpu_is_refused(platform):
    model = device_decoder(platform, runtime_of(platform), None)
    with pytest.raises(TypeError, match="expected one in device memory"):
        model.bind_kv_cache(KVCache.zeros(model.kv_layout(32, "auto"), 2))


def test_what_a_step_and_all_graphs_there_may_be_take_is_known_before_the_cache_is_sized():
    runtime, platform = FakeRuntime(), kernel_platform.emulated()
    model = device_decoder(platform, runtime, Buckets((1, 2, 4, 8), (64, 256)))
    needs = model.memory_needs(32, 40)
    assert needs.taken == MODEL_BYTES + SHARED_BYTES + 2 * GRAPH_BYTES
    assert needs.passing == STEP_BYTES, "though captures give it back"
    assert needs.later == 6 * (2 << 20), "no graph counts for less than a driver takes at a time"
    assert runtime.captures == 2
    assert runtime.calls[-1] == "forget"
    assert kv_bytes(runtime.total_bytes(), needs, 0.9) == int(0.9 * runtime.total_bytes()) - needs.total
    with pytest.raises(SpliceError, match="nothing is left for the KV cache") as refused:
        kv_bytes(runtime.total_bytes(), needs, 0.1)
    assert refused.value.param == "gpu_memory_utilization"


def test_without_graphs_nothing_is_captured_for_trial():
    runtime, platform = FakeRuntime(), kernel_platform.emulated()
    needs = device_decoder(platform, runtime, None).memory_needs(32, 40)
    assert (runtime.captures, needs.taken, needs.passing, needs.later) == (0, MODEL_BYTES, STEP_BYTES, 0)


@pytest.mark.parametrize(
    ("tokens", "rows", "logits"), [(40, [1] * 7 + [33], 40), (300, [1] * 7 + [128, 165], 136), (4, [1] * 4, 4)]
)
def test_the_step_that_is_tried_has_the_longest_contexts_and_all_logits_ever_wanted(tokens, rows, logits, monkeypatch):
    platform = kernel_platform.emulated()
    model, tried = device_decoder(platform, FakeRuntime(), None), []
    monkeypatch.setattr(model._decoder, "run", lambda plan, cache: tried.append(plan) or torch.empty(0, 320))
    model.memory_needs(32, tokens)
    [plan] = tried
    assert plan.query_starts.diff().tolist() == rows
    assert set((plan.starts + plan.query_starts.diff()).tolist()) == {512}
    assert (len(plan.logit_rows), plan.bounds.leading_singles) == (logits, rows.count(1))


@pytest.fixture
def refusals(monkeypatch):
    """Of captures, once the model is bound: as where memory does not suffice for one more."""
    seen = []

    def refuse(runtime, work):
        seen.append(work)
        raise SpliceError(ErrorCode.INTERNAL_ERROR, "capturing a step failed") from torch.OutOfMemoryError("2 GiB")

    return lambda: monkeypatch.setattr(FakeRuntime, "capture", refuse) or seen


def test_a_graph_that_is_not_to_be_had_is_asked_for_once_and_its_steps_are_launched(refusals):
    platform = kernel_platform.emulated()
    steps = [[(0, PROMPTS[0] + PROMPTS[2]), (1, PROMPTS[1])], [(0, [1]), (1, [2])], [(0, [3]), (1, [4])]]
    run, launched = (
        Run(bound(device_decoder(platform, FakeRuntime(), buckets), platform, 16)) for buckets in (BUCKETS, None)
    )
    seen = refusals()
    for parts in steps:
        np.testing.assert_array_equal(run.step(parts), launched.step(parts))
    assert len(seen) == 1
    assert len(run.model.captured.keys) == 4


def test_a_capture_that_fails_on_a_device_that_is_lost_says_so(refusals):
    runtime, platform = FakeRuntime(), kernel_platform.emulated()
    run = Run(bound(device_decoder(platform, runtime, BUCKETS), platform, 16))
    run.step([(0, PROMPTS[0] + PROMPTS[2])])
    refusals()
    runtime.is_lost = True
    with pytest.raises(DeviceLost):
        run.step([(0, [1])])
