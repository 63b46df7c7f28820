"""Which kernel attends prompts: Hopper's where it has the other's bits, and in the fast mode where it is as close."""

from __future__ import annotations

import logging

import pytest
import torch
from closeness import same_bits
from paged_cases import paged_case

from engine.ops.cuda import attention_kernels
from engine.ops.cuda.attention import Scores, prefill_attention, prefill_attention_sm90
from engine.ops.cuda.attention_kernels import PrefillChoice, choice_of, prefill_choice
from engine.ops.cuda.candidates import CudaOps
from engine.steps.step_plan import StepBounds


def test_where_bits_are_the_same_prompts_take_hoppers_kernel_in_every_mode():
    for keeps_bits in (True, False):
        choice = choice_of({64: 0.0, 128: 0.0}, keeps_bits=keeps_bits)
        assert choice.name == "cuda"
        assert choice.of(64) is choice.of(128) is prefill_attention_sm90
        assert choice.of(256) is prefill_attention


def test_where_bits_differ_only_the_fast_mode_takes_it_and_says_so():
    apart = {64: 0.0, 128: 2e-3}
    exact, fast = (choice_of(apart, keeps_bits=keeps_bits) for keeps_bits in (True, False))
    assert (exact.name, exact.of(64), exact.of(128)) == ("cuda", prefill_attention_sm90, prefill_attention)
    assert (fast.name, fast.of(64), fast.of(128)) == ("cuda+sm90", prefill_attention_sm90, prefill_attention_sm90)


@pytest.mark.parametrize("apart", [0.3, float("nan"), float("inf")])
def test_a_kernel_that_is_wrong_is_never_taken(apart, caplog):
    with caplog.at_level(logging.ERROR):
        choice = choice_of({80: apart}, keeps_bits=False)
    assert choice.of(80) is prefill_attention
    assert "wrong for head_dim 80" in caplog.text


def test_the_gpu_is_asked_with_every_head_dim(platform):
    if not platform.has_warpgroups("prefill_attention_sm90"):
        pytest.skip("prefill_attention_sm90 needs a Hopper GPU and its unit")
    choice = prefill_choice(platform.library, is_hopper=True, keeps_bits=False)
    assert choice.same_bits | choice.other_bits == {64, 80, 96, 128}
    if platform.name == "emulated":
        assert not choice.other_bits


def test_a_last_bit_makes_a_difference(platform, monkeypatch):
    if not platform.has_warpgroups("prefill_attention_sm90"):
        pytest.skip("prefill_attention_sm90 needs a Hopper GPU and its unit")

    def nudged(*arguments):
        out = prefill_attention(*arguments)
        out.view(torch.int16)[0, 0, 0] += 1
        return out

    monkeypatch.setattr(attention_kernels, "prefill_attention_sm90", nudged)
    choice = prefill_choice(platform.library, is_hopper=True, keeps_bits=False)
    assert (choice.same_bits, choice.other_bits) == (frozenset(), {64, 80, 96, 128})


def test_a_step_gives_prompts_to_the_kernel_that_was_chosen(platform, monkeypatch):
    if not platform.has_warpgroups("prefill_attention_sm90"):
        pytest.skip("prefill_attention_sm90 needs a Hopper GPU and its unit")
    case, taken = paged_case([(70, 1), (5, 30)], (4, 2), 64, platform.device), []

    def noted(*arguments):
        taken.append(arguments[1].shape[0])
        return prefill_attention_sm90(*arguments)

    monkeypatch.setattr(attention_kernels, "prefill_attention_sm90", noted)
    ops = CudaOps(platform.library, None, PrefillChoice(other_bits=frozenset({64})))
    rows = case.rows
    bounds = StepBounds(max_context=rows.max_context, max_query=rows.max_query, leading_singles=1)
    arguments = (case.q, case.cache, 1, rows.block_tables, rows.query_starts, rows.starts, 0.125)
    found = ops.paged_attention(*arguments, bounds=bounds)
    assert taken == [30]
    wanted = prefill_attention_sm90(platform.library, case.q, case.cache, 1, rows, Scores(0.125))
    assert same_bits(found[1:], wanted[1:])
