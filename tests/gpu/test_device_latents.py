"""A model with latent attention on a device: the model it is meant to be, and one set of bits in any company."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from device_models import LATENT_SPEC, LATENTS, bound, device_decoder, reference_decoder, runtime_of

from engine.blocks.kv_cache import KVCache
from engine.device.buckets import Buckets
from engine.ops.cuda.candidates import obstacle
from engine.spec import LayerSpec, MlpSpec
from engine.steps.batch import SequenceSlice, StepBatch

PROMPTS = [[(5 * i * i + seed) % 300 for i in range(length)] for seed, length in ((1, 37), (2, 4))]


def _run(model, steps: list[list[tuple[int, list[int]]]]) -> list[np.ndarray]:
    """Logits of the last tokens of each step's parts: (sequence, tokens)."""
    lengths, found = {0: 0, 1: 0}, []
    for parts in steps:
        slices = []
        for sequence, tokens in parts:
            start = lengths[sequence]
            lengths[sequence] = start + len(tokens)
            blocks = list(range(1 + 2 * sequence, 1 + 2 * sequence + -(-lengths[sequence] // 32)))
            slices.append(SequenceSlice(tokens, start, blocks, True))
        logits = model.forward(StepBatch(tuple(slices)))
        found.append(logits if isinstance(logits, np.ndarray) else logits.host(slice(None)).copy())
    return found


@pytest.fixture
def make(platform):
    return lambda buckets: bound(device_decoder(platform, runtime_of(platform), buckets, LATENT_SPEC), platform, 8)


def test_a_model_with_latents_is_that_of_the_plain_operations_in_one_set_of_bits(make):
    together = [[(0, PROMPTS[0]), (1, PROMPTS[1])], [(0, [40]), (1, [41])]]
    plain = reference_decoder(LATENT_SPEC)
    plain.bind_kv_cache(KVCache.zeros(plain.kv_layout(32, "auto"), 8))
    wanted, launched, replayed = (_run(model, together) for model in (plain, make(None), make(Buckets((1, 2), (64,)))))
    for one, other, exact in zip(launched, replayed, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.linalg.norm(one - exact) / np.linalg.norm(exact) < 0.03
    model = make(None)
    assert not model.answer_is_apart
    mixed = _run(model, [[(1, PROMPTS[1]), (0, PROMPTS[0][:9])], [(0, PROMPTS[0][9:]), (1, [41])], [(0, [40])]])
    np.testing.assert_array_equal(mixed[1][0], launched[0][0])
    np.testing.assert_array_equal(mixed[1][1], launched[1][1])
    np.testing.assert_array_equal(mixed[2][0], launched[1][0])


def test_latents_no_kernel_takes_are_named(platform):
    assert obstacle(LATENT_SPEC) is None
    for attention, words in (
        (replace(LATENTS, kv_lora_rank=128), "latents have 128 + 32 dimensions"),
        (replace(LATENTS, v_head_dim=36), "heads have 32 and 36 dimensions"),
    ):
        reason = obstacle(replace(LATENT_SPEC, layers=(LayerSpec(attention, MlpSpec(96)),)))
        assert reason is not None
        assert words in reason
