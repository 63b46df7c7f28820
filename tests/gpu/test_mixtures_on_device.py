"""Mixtures of experts in a decoder on a device: the model of the plain operations, one set of bits for a sequence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from device_models import SPEC, bound, device_decoder, reference_decoder, runtime_of
from device_run import Run

from engine.blocks.kv_cache import KVCache
from engine.device.buckets import Buckets
from engine.ops.cuda.candidates import obstacle
from engine.ops.cuda.expert_kernels import MANY_ROWS, choice_of
from engine.ops.cuda.experts import ExpertStacks
from engine.spec import LayerSpec, MlpSpec, ModelSpec, MoeSpec, RoutingSpec

_PLAIN = MoeSpec(RoutingSpec(8, 2, "softmax", normalise=True), MlpSpec(40))
_GROUPED = MoeSpec(
    RoutingSpec(
        16, 3, "sigmoid", normalise=True, scale=1.5, num_groups=4, top_groups=2, group_score="top2_sum",
        score_bias=True, logit_bias=True,
    ),
    MlpSpec(24, "swiglu_oai", bias=True),
    shared=MlpSpec(32),
)  # fmt: skip
_ATTENTION = SPEC.layers[0].attention
BUCKETS = Buckets((1, 4), (64,))
PROMPTS = [[(7 * i * i + 3 * i + seed) % 300 for i in range(length)] for seed, length in ((1, 14), (2, 5), (3, 9))]
MIXTURE = replace(SPEC, layers=(LayerSpec(_ATTENTION, _PLAIN), LayerSpec(_ATTENTION, _GROUPED)))


@pytest.fixture
def make(platform):
    def model(buckets):
        return bound(device_decoder(platform, runtime_of(platform), buckets, MIXTURE), platform, 16)

    return model


def _answers(model) -> list[np.ndarray]:
    run = Run(model)
    return [run.step(list(enumerate(PROMPTS))), run.step([(sequence, [40 + sequence]) for sequence in range(3)])]


def test_a_mixture_is_the_model_of_the_plain_operations(make):
    plain = reference_decoder(MIXTURE)
    plain.bind_kv_cache(KVCache.zeros(plain.kv_layout(32, "auto"), 16))
    for wanted, found in zip(_answers(plain), _answers(make(BUCKETS)), strict=True):
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.04


def test_a_mixtures_replayed_step_has_the_bits_of_a_launched_one(make):
    """Three sequences in a graph for four: what the row that fills it up chooses reaches nobody."""
    for launched, replayed in zip(_answers(make(None)), _answers(make(BUCKETS)), strict=True):
        np.testing.assert_array_equal(launched, replayed)


def test_a_sequence_has_one_set_of_bits_whatever_company_its_experts_have(make):
    together, model = _answers(make(BUCKETS)), make(BUCKETS)
    for sequence, prompt in enumerate(PROMPTS):
        run = Run(model)
        cut = len(prompt) // 3
        run.step([(0, prompt[:cut])])
        alone = [run.step([(0, prompt[cut:])]), run.step([(0, [40 + sequence])])]
        for row, rows in zip(alone, together, strict=True):
            np.testing.assert_array_equal(row[0], rows[sequence])


def test_mixtures_that_no_kernel_computes_say_why():
    def of(**changes: object) -> ModelSpec:
        return replace(SPEC, layers=(LayerSpec(_ATTENTION, replace(_PLAIN, **changes)),))

    assert obstacle(MIXTURE) is None
    routing = _PLAIN.routing
    for words, spec in (
        ("num_experts is 520", of(routing=replace(routing, num_experts=520))),
        ("top_k is 40", of(routing=replace(routing, num_experts=64, top_k=40))),
        ("num_groups is 64", of(routing=replace(routing, num_experts=64, num_groups=64, top_groups=64))),
        ("num_experts is 12", of(routing=replace(routing, num_experts=12))),
        ("the experts' intermediate_size is 44", of(expert=MlpSpec(44))),
        ("hidden_size is 60", replace(of(), hidden_size=60)),
    ):
        assert words in (obstacle(spec) or "")


def test_one_arithmetic_is_chosen_for_all_steps_of_a_layer():
    weights = torch.empty(8, 16, 8), torch.empty(8, 8, 8)
    plain, biased = ExpertStacks(*weights), ExpertStacks(*weights, torch.empty(8, 16), torch.empty(8, 8))
    rows = (1, 8 * MANY_ROWS, 8 * MANY_ROWS + 1)
    for agreement, expected in (
        ((True, True), ["grouped_gemm", "grouped_gemm", "grouped_sm90"]),
        ((False, True), ["grouped_sm90"] * 3),
        ((True, False), ["grouped_gemm"] * 3),
        ((False, False), ["grouped_gemm"] * 3),
    ):
        choice = choice_of(kernels_agree=agreement[0], tiles_agree=agreement[1])
        assert [choice.of(count, plain) for count in rows] == expected
        assert {choice.of(count, biased) for count in rows} == {"grouped_gemm"}
