"""A decoder on a device: the model it is meant to be, and one set of bits however its steps are launched."""

from __future__ import annotations

import kernel_platform
import numpy as np
import pytest
import torch
from device_models import bound, device_decoder, reference_decoder, runtime_of
from device_run import BUCKETS, PROMPTS, Run, answers
from fake_runtime import FakeRuntime

from engine.blocks.kv_cache import KVCache
from engine.device.buckets import Buckets
from engine.device.memory_budget import kv_bytes
from wire.errors import SpliceError


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
    assert [(key.sequences, key.context) for key in model.captured.keys] == [(4, 64), (2, 64), (1, 64)]
    run = Run(model)
    run.step([(0, PROMPTS[0])])
    run.step([(0, [1])])
    assert len(model.captured.keys) == 3
    run.step([(1, PROMPTS[0] + PROMPTS[2]), (2, PROMPTS[1])])
    run.step([(1, [1]), (2, [2])])
    assert [(key.sequences, key.context) for key in model.captured.keys][3:] == [(2, 256)]


def test_more_sequences_than_any_graph_has_are_launched(make):
    run = Run(make(Buckets((1, 2), (256,))))
    run.step(list(enumerate(PROMPTS)))
    row = run.step([(sequence, [40 + sequence]) for sequence in range(3)])
    np.testing.assert_array_equal(row, answers(make(BUCKETS))[1])


def test_a_step_is_one_copy_to_the_device_and_one_replay():
    runtime = FakeRuntime()
    platform = kernel_platform.emulated()
    run = Run(bound(device_decoder(platform, runtime, BUCKETS), platform, 16))
    run.step([(0, PROMPTS[0])])
    runtime.calls.clear()
    for token in range(4):
        run.step([(0, [token])])
    assert [call for call in runtime.calls if call != "wait"] == ["upload", "replay"] * 4


def test_memory_of_the_cpu_is_refused(platform):
    model = device_decoder(platform, runtime_of(platform), None)
    with pytest.raises(TypeError, match="expected one in device memory"):
        model.bind_kv_cache(KVCache.zeros(model.kv_layout(32, "auto"), 2))


def test_what_graphs_take_is_known_before_the_cache_is_sized():
    runtime, platform = FakeRuntime(), kernel_platform.emulated()
    model = device_decoder(platform, runtime, Buckets((1, 2, 4, 8), (64, 256)))
    needs = model.memory_needs(32, 40)
    assert (needs.taken, needs.later) == (1520, 20)
    assert runtime.captures == 2
    assert runtime.calls[-1] == "forget"
    assert kv_bytes(runtime.total_bytes(), needs, 0.9) == 9000 - 1540
    with pytest.raises(SpliceError, match="nothing is left for the KV cache") as refused:
        kv_bytes(runtime.total_bytes(), needs, 0.1)
    assert refused.value.param == "gpu_memory_utilization"


def test_without_graphs_nothing_is_captured_for_trial():
    runtime, platform = FakeRuntime(), kernel_platform.emulated()
    needs = device_decoder(platform, runtime, None).memory_needs(32, 40)
    assert (runtime.captures, needs.later) == (0, 0)
