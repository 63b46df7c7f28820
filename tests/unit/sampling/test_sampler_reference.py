"""Every parameter at once, at random, against the plain reference, on every instruction set of this machine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_sampler import adjusted, draw, units_left

from engine._sampling import NOTHING_LEFT, Sampler
from engine.sampling.philox import DrawPurpose, uniform
from engine.sampling.sampler import SamplingRow
from wire.sampling import SamplingParams


def isas() -> list[str]:
    found = []
    for isa in ("portable", "avx2", "avx512"):
        try:
            Sampler(isa)
        except ValueError:
            continue
        found.append(isa)
    return found


SAMPLERS = {isa: Sampler(isa) for isa in isas()}


@st.composite
def rows_of_logits(draw_from: st.DrawFn) -> torch.Tensor:
    """Of a shape that models produce, of ties, of a single peak; some logits forbidden."""
    size = draw_from(st.sampled_from([2, 7, 63, 64, 65, 130, 300, 1000, 5000]))
    generator = np.random.default_rng(draw_from(st.integers(0, 10**6)))
    logits = generator.normal(size=size) * draw_from(st.sampled_from([0.1, 1.0, 4.0, 30.0]))
    if draw_from(st.booleans()):
        logits = logits.round(draw_from(st.integers(0, 1)))
    if draw_from(st.booleans()):
        logits[generator.integers(size)] += 12.0
    if draw_from(st.booleans()):
        logits[generator.random(size) < 0.3] = -math.inf
        logits[generator.integers(size)] = 1.0
    return torch.tensor(logits, dtype=torch.float32)


def shares(low: float = 0.001) -> st.SearchStrategy[float]:
    return st.one_of(st.just(1.0), st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.999]), st.floats(low, 0.99999))


@st.composite
def situations(draw_from: st.DrawFn) -> tuple[torch.Tensor, SamplingRow]:
    logits = draw_from(rows_of_logits())
    ids = st.integers(0, len(logits) - 1)
    tokens = draw_from(st.lists(ids, min_size=1, max_size=30))
    num_prompt = draw_from(st.integers(1, len(tokens)))
    answer = tokens[num_prompt:]
    likely_bad = st.sampled_from(
        [(*answer[-begun:], int(logits.argmax())) for begun in range(1, 1 + len(answer))] or [(0,)]
    )
    params = SamplingParams(
        max_tokens=100,
        temperature=draw_from(st.one_of(st.just(0.0), st.just(1.0), st.just(1e-300), st.floats(0.01, 2.0))),
        min_p=draw_from(st.one_of(st.just(0.0), st.floats(0.0, 1.0))),
        top_k=draw_from(st.one_of(st.just(0), st.integers(1, 80))),
        typical_p=draw_from(shares()),
        top_p=draw_from(shares()),
        min_tokens=draw_from(st.integers(0, 20)),
        repetition_penalty=draw_from(st.one_of(st.just(1.0), st.floats(0.1, 2.0))),
        frequency_penalty=draw_from(st.one_of(st.just(0.0), st.floats(-2.0, 2.0))),
        presence_penalty=draw_from(st.one_of(st.just(0.0), st.floats(-2.0, 2.0))),
        logit_bias=draw_from(st.dictionaries(ids, st.floats(-100, 100), max_size=4)),
        allowed_token_ids=tuple(draw_from(st.one_of(st.just([]), st.lists(ids, min_size=1, max_size=40)))),
        bad_words=tuple(
            draw_from(st.lists(st.one_of(likely_bad, st.lists(ids, min_size=1, max_size=3).map(tuple)), max_size=3))
        ),
        seed=draw_from(st.integers(0, 2**64 - 1)),
        choice=draw_from(st.integers(0, 15)),
    )
    stopping = draw_from(st.lists(ids, max_size=3))
    return logits, SamplingRow(params, tokens, num_prompt, stopping)


@settings(max_examples=600, deadline=None)
@given(situations())
def test_a_draw_is_what_the_plain_reference_draws(situation: tuple[torch.Tensor, SamplingRow]) -> None:
    logits, row = situation
    params = row.params
    left = adjusted(logits, params, row.tokens, row.num_prompt_tokens, row.stopping_ids)
    if not torch.isfinite(left.max()):
        expected = NOTHING_LEFT
    elif params.is_greedy:
        expected = int(left.argmax())
    else:
        number = uniform(params.seed, params.choice, len(row.tokens), DrawPurpose.TOKEN)
        expected = draw(units_left(left, params), number)
    array = logits[None].numpy()
    for isa, sampler in SAMPLERS.items():
        assert sampler.draw(array, 0, row.plan, row.tokens, row.num_prompt_tokens) == expected, isa


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize(("typical_p", "top_p"), [(1.0, 0.9), (0.7, 1.0), (0.7, 0.9), (1.0, 0.999999), (0.01, 0.01)])
@pytest.mark.parametrize("shape", ["alike", "two zeros", "few values", "flat", "wide", "one far above"])
def test_rows_of_many_ties_and_of_any_width_are_cut_where_the_reference_cuts(
    shape: str, typical_p: float, top_p: float, isa: str
) -> None:
    generator, size = np.random.default_rng(3), 20_011
    drawn = generator.normal(size=size)
    row = {
        "alike": np.zeros(size),
        "two zeros": np.where(drawn > 0, 0.0, -0.0),
        "few values": drawn.round(0),
        "flat": drawn * 0.01,
        "wide": drawn * 1e30,
        "one far above": np.where(np.arange(size) == 777, 40.0, drawn),
    }[shape]
    logits = torch.tensor(row, dtype=torch.float32)
    for seed in range(3):
        params = SamplingParams(max_tokens=9, temperature=0.8, typical_p=typical_p, top_p=top_p, seed=seed)
        found = SAMPLERS[isa].draw(logits[None].numpy(), 0, SamplingRow(params, [1], 1).plan, [1], 1)
        assert found == draw(units_left(logits, params), uniform(seed, 0, 1, DrawPurpose.TOKEN))


@settings(max_examples=200, deadline=None)
@given(rows_of_logits(), st.integers(0, 30), st.data())
def test_logprobs_are_the_log_softmax_on_every_instruction_set(
    logits: torch.Tensor, num_top: int, data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    reference = torch.log_softmax(logits.double(), -1)
    order = torch.sort(-logits.double(), stable=True).indices[:num_top].tolist()
    answers = [sampler.logprobs(logits[None].numpy(), [token], num_top)[0] for sampler in SAMPLERS.values()]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0] is not None
    logprob, rank, top_ids, top_logprobs = answers[0]
    assert logprob == pytest.approx(float(reference[token]), abs=1e-12)
    assert rank == 1 + int((logits > logits[token]).sum())
    assert top_ids == order
    assert top_logprobs == pytest.approx(reference[order].tolist(), abs=1e-12)
