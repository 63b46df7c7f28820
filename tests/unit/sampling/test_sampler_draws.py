"""What is drawn: distributions, ties, errors, and independence of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from plain_sampler import UNITS, adjusted, units_left

from engine.sampling.philox import DrawPurpose, uniform
from engine.sampling.sampler import SamplingRow, sample
from wire.errors import ErrorCode, SpliceError
from wire.sampling import SamplingParams

VOCAB = 300


def logits_of(seed, vocab=VOCAB, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocab, generator=generator) * scale


def row(tokens=(1, 2, 3), num_prompt_tokens=3, stopping_ids=(), **params):
    return SamplingRow(SamplingParams(**{"max_tokens": 10, **params}), list(tokens), num_prompt_tokens, stopping_ids)


def draw(logits, a_row):
    (drawn,) = sample(logits[None], [a_row])
    if isinstance(drawn, Exception):
        raise drawn
    return drawn


def frequencies(logits, count, **params):
    rows = [row(seed=seed, **params) for seed in range(count)]
    drawn = [each.token for each in sample(logits.expand(count, -1), rows)]
    return np.bincount(drawn, minlength=len(logits))


def chi_square(observed, probabilities):
    expected = probabilities * observed.sum()
    assert (observed[expected == 0] == 0).all()
    kept = expected > 0
    degrees = kept.sum() - 1
    statistic = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    # Wilson and Hilferty's normal approximation, at about one in a thousand.
    limit = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    return statistic, limit


def reference_probabilities(logits, **params):
    units = units_left(logits, SamplingParams(max_tokens=1, **params)).double()
    return (units / units.sum()).numpy()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"typical_p": 0.4},
        {"temperature": 0.7, "typical_p": 0.8},
        {"temperature": 1.3, "min_p": 0.02, "top_k": 12, "typical_p": 0.95, "top_p": 0.9},
    ],
)
def test_the_sampled_distribution_is_the_filtered_softmax(params):
    logits = logits_of(5, vocab=40, scale=1.5)
    statistic, limit = chi_square(frequencies(logits, 6000, **params), reference_probabilities(logits, **params))
    assert statistic < limit


def test_the_distribution_after_every_rule_and_every_filter():
    logits, tokens = logits_of(11, vocab=60, scale=1.0), [3, 4, 5, 3, 9, 9]
    params = {
        "allowed_token_ids": (*range(0, 60, 2), 3, 9),
        "bad_words": ((9, 12), (14,)),
        "logit_bias": {2: 1.5, 3: -0.5},
        "repetition_penalty": 1.4,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "min_tokens": 9,
        "temperature": 0.8,
        "min_p": 0.03,
        "top_k": 20,
        "typical_p": 0.97,
        "top_p": 0.95,
    }
    rows = [row(tokens, 3, (8,), seed=seed, **params) for seed in range(6000)]
    drawn = [each.token for each in sample(logits.expand(len(rows), -1), rows)]
    sampling = rows[0].params
    units = units_left(adjusted(logits, sampling, tokens, 3, (8,)), sampling).double()
    assert 8 < int((units > 0).sum()) < 20
    statistic, limit = chi_square(np.bincount(drawn, minlength=60), (units / units.sum()).numpy())
    assert statistic < limit


@pytest.mark.parametrize("params", [{}, {"top_k": 20}, {"top_p": 0.9}])
def test_a_draw_inverts_the_cumulative_distribution_over_ascending_ids(params):
    logits = logits_of(6, vocab=50, scale=1.0)
    cumulative = reference_probabilities(logits, **params).cumsum()
    for seed in range(40):
        point = uniform(seed, 2, 3, DrawPurpose.TOKEN)
        expected = int(np.searchsorted(cumulative, point, side="right"))
        assert draw(logits, row(seed=seed, choice=2, **params)).token == expected


def test_choices_and_positions_draw_independently():
    draws = np.array([uniform(9, choice, at, DrawPurpose.TOKEN) for choice in range(64) for at in range(64)])
    statistic, limit = chi_square(np.bincount((draws * 32).astype(int), minlength=32), np.full(32, 1 / 32))
    assert statistic < limit
    assert len(set(draws)) == 64 * 64
    grid = draws.reshape(64, 64)
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.05


def philox4x64(counter, key):
    """Straight from the paper: ten rounds."""
    mask = (1 << 64) - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k[0], second & mask, (first >> 64) ^ c[3] ^ k[1], first & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


@pytest.mark.parametrize(("seed", "choice", "position"), [(0, 0, 0), (2**64 - 1, 3, 4097), (12345, 1, 7)])
def test_the_uniform_number_is_philox_of_seed_choice_position_and_purpose(seed, choice, position):
    word = philox4x64((1, position, 0, 0), (seed, choice))[0]
    assert uniform(seed, choice, position, DrawPurpose.TOKEN) == (word >> 11) / 2**53


def test_the_likeliest_token_counts_as_units_that_its_distribution_sums_to():
    assert int(units_left(torch.zeros(4), SamplingParams(max_tokens=1)).sum()) == 4 * UNITS


@pytest.mark.parametrize("top_k", [1, 2, 7, 299])
def test_top_k_takes_the_lowest_ids_of_a_tie(top_k):
    logits = torch.tensor([1.0, 2.0, 2.0] * 100)
    order = np.lexsort((np.arange(300), -logits.numpy()))
    drawn = np.flatnonzero(frequencies(logits, 3000, top_k=top_k))
    assert set(drawn) <= set(order[:top_k].tolist())
    assert len(drawn) > 0.9 * top_k


def test_min_p_keeps_those_at_least_that_share_of_the_likeliest():
    logits = torch.log(torch.tensor([0.05, 1.0, 0.101, 0.099, 0.5]))
    assert np.flatnonzero(frequencies(logits, 600, min_p=0.1)).tolist() == [1, 2, 4]


def test_typical_p_may_leave_out_the_likeliest():
    # Surprise of the likeliest is 0.92, of the others 3.73, expected 2.60: the others are nearer, and 16 reach 0.38.
    logits = torch.log(torch.tensor([0.4, *[0.024] * 25]))
    counts = frequencies(logits, 400, typical_p=0.38)
    assert counts[0] == 0
    assert np.count_nonzero(counts) == 16


def test_min_p_comes_before_top_k_before_top_p():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]))
    counts = frequencies(logits, 400, min_p=0.2, top_k=2, top_p=0.7)
    # After min_p {0, 1, 2}, after top_k {0, 1} with shares 2/3 and 1/3; 2/3 < 0.7, so both stay.
    assert (counts > 0).tolist() == [True, True, False, False, False]
    assert (frequencies(logits, 200, min_p=0.2, top_k=2, top_p=0.6) > 0).tolist() == [True, *[False] * 4]


def test_bias_comes_before_the_repetition_penalty():
    logits = torch.tensor([0.0, 3.0, -5.0])
    # Token 2: (-5 + 9) / 2 = 2 loses to 3; the other way round, -10 + 9, would lose to 0 as well as to 3.
    assert draw(logits, row([2], 1, temperature=0.0, logit_bias={2: 9.0}, repetition_penalty=2.0)).token == 1
    assert draw(logits, row([2], 1, temperature=0.0, logit_bias={2: 12.0}, repetition_penalty=2.0)).token == 2


def test_greedy_takes_the_lowest_id_of_a_tie():
    logits = torch.zeros(VOCAB)
    logits[[7, 50, 120]] = 4.0
    assert draw(logits, row(temperature=0.0)).token == 7
    assert draw(logits, row(temperature=0.0, logprobs=2)).logprobs.top_ids == (7, 50)
    assert draw(logits, row(temperature=0.0, logit_bias={7: -1.0})).token == 50


def test_a_temperature_near_zero_is_greedy_and_warns_of_nothing(recwarn):
    logits = logits_of(1)
    assert draw(logits, row(temperature=1e-300)).token == int(logits.argmax())
    assert not recwarn.list


def test_min_tokens_forbids_what_would_end_the_answer_until_then():
    logits = torch.zeros(VOCAB)
    logits[4] = 9.0
    before = row([1, 2, 3], 2, (4,), temperature=0.0, min_tokens=2)
    after = row([1, 2, 3, 3], 2, (4,), temperature=0.0, min_tokens=2)
    assert draw(logits, before).token == 0
    assert draw(logits, after).token == 4


def test_allowed_tokens_alone_are_drawn():
    logits = logits_of(2)
    assert draw(logits, row(temperature=0.0, allowed_token_ids=(250, 40))).token == max(
        (40, 250), key=lambda i: logits[i]
    )
    assert set(np.flatnonzero(frequencies(logits, 300, allowed_token_ids=(7, 9, 200), temperature=5.0))) == {7, 9, 200}


def test_a_bad_word_is_not_completed_and_its_parts_are_free():
    logits = torch.zeros(VOCAB)
    logits[8], logits[9] = 5.0, 4.0
    bad = {"temperature": 0.0, "bad_words": ((5, 6, 8), (9,))}
    assert draw(logits, row([1, 5, 6], 1, **bad)).token == 0
    assert draw(logits, row([1, 6, 6], 1, **bad)).token == 8
    assert draw(logits, row([5, 6], 2, **bad)).token == 8  # the prompt is not part of the answer
    assert draw(logits, row([1], 1, **bad)).token == 8


def test_logprobs_are_of_the_models_own_distribution():
    logits = logits_of(8)
    changed = {"temperature": 0.3, "top_k": 3, "repetition_penalty": 1.5, "logit_bias": {9: 50.0}, "logprobs": 4}
    drawn = draw(logits, row(**changed))
    reference = torch.log_softmax(logits.double(), -1)
    assert drawn.token == 9
    assert drawn.logprobs.logprob == pytest.approx(float(reference[9]), abs=1e-12)
    top = reference.topk(4)
    assert drawn.logprobs.top_ids == tuple(top.indices.tolist())
    assert drawn.logprobs.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-12)
    assert drawn.logprobs.rank == 1 + int((logits > logits[9]).sum())
    assert draw(logits, row(logprobs=0)).logprobs.top_ids == ()


def test_a_row_gets_the_same_whatever_stands_beside_it():
    rows, logits = [], []
    for index in range(17):
        params = {"seed": index, "temperature": index % 3 / 2, "logprobs": index % 4 or None, "top_p": 0.8}
        rows.append(row(**params))
        logits.append(logits_of(index))
    together = sample(torch.stack(logits), rows)
    assert together == [sample(each[None], [a_row])[0] for each, a_row in zip(logits, rows, strict=True)]
    assert sample(torch.stack(logits[::-1]), rows[::-1]) == together[::-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_fail_their_own_row_alone(bad):
    logits = torch.stack([logits_of(1), logits_of(2), logits_of(3)])
    if bad == -math.inf:
        logits[1] = bad
    else:
        logits[1, 17] = bad
    first, second, third = sample(logits, [row(seed=1), row(seed=2), row(seed=3)])
    assert isinstance(second, SpliceError)
    assert second.code is ErrorCode.INTERNAL_ERROR
    assert [first, third] == [draw(logits_of(1), row(seed=1)), draw(logits_of(3), row(seed=3))]


def test_a_single_forbidden_logit_is_fine():
    logits = logits_of(4)
    logits[int(logits.argmax())] = -math.inf
    assert draw(logits, row(temperature=0.0)).token == int(logits.argmax())


@pytest.mark.parametrize("params", [{"min_tokens": 2}, {"bad_words": ((0,), (1,), (2,))}])
def test_nothing_left_to_draw_is_the_requests_fault(params):
    with pytest.raises(SpliceError) as caught:
        draw(torch.zeros(3), row([1], 1, (0, 1, 2), **params))
    assert caught.value.code is ErrorCode.INVALID_REQUEST
