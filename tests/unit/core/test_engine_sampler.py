"""The sampler against plain references, its distribution, and its independence of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine import logit_filters
from engine.philox import DrawPurpose, uniform
from engine.sampler import SamplingRow, sample
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


def reference_probabilities(logits, *, temperature=1.0, min_p=0.0, top_k=0, top_p=1.0):
    """By full sorts, in torch: the textbook form."""
    probabilities = torch.softmax(logits.double() / temperature, -1)
    probabilities[probabilities < min_p * probabilities.max()] = 0
    order = torch.sort(probabilities, descending=True, stable=True).indices
    if top_k:
        probabilities[order[top_k:]] = 0
    probabilities /= probabilities.sum()
    before = probabilities[order].cumsum(0) - probabilities[order]
    probabilities[order[before >= top_p]] = 0
    return (probabilities / probabilities.sum()).numpy()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7, "top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 1.3, "min_p": 0.02, "top_k": 12, "top_p": 0.9},
    ],
)
def test_the_sampled_distribution_is_the_filtered_softmax(params):
    logits = logits_of(5, vocab=40, scale=1.5)
    statistic, limit = chi_square(frequencies(logits, 6000, **params), reference_probabilities(logits, **params))
    assert statistic < limit


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


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_what_a_full_sort_keeps(seed, top_p):
    logits = logits_of(seed, vocab=5000, scale=0.3).double().numpy().round(1)  # many ties
    weights = logit_filters.weigh(logits, 1.0)
    order = np.lexsort((np.arange(5000), -weights))
    reached = np.searchsorted(np.cumsum(weights[order]), top_p * weights.sum(), side="left")
    kept = logit_filters.keep_top_p(np.arange(5000), weights, top_p)
    assert abs(len(kept) - min(reached + 1, 5000)) <= (1 if top_p == 1.0 else 0)
    assert (kept == order[: len(kept)]).all()


@pytest.mark.parametrize("top_k", [1, 2, 7, 299])
def test_top_k_takes_the_lowest_ids_of_a_tie(top_k):
    weights = np.array([1.0, 2.0, 2.0] * 100)
    order = np.lexsort((np.arange(300), -weights))
    assert (logit_filters.keep_top_k(np.arange(300), weights, top_k) == order[:top_k]).all()


def test_min_p_keeps_those_at_least_that_share_of_the_likeliest():
    weights = np.array([0.05, 1.0, 0.1, 0.099, 0.5])
    assert logit_filters.keep_min_p(np.arange(5), weights, 0.1).tolist() == [1, 2, 4]


def test_min_p_comes_before_top_k_before_top_p():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]))
    counts = frequencies(logits, 400, min_p=0.2, top_k=2, top_p=0.7)
    # After min_p {0, 1, 2}, after top_k {0, 1} with shares 2/3 and 1/3; 2/3 < 0.7, so both stay.
    assert (counts > 0).tolist() == [True, True, False, False, False]
    assert (frequencies(logits, 200, min_p=0.2, top_k=2, top_p=0.6) > 0).tolist() == [True, *[False] * 4]


def test_penalties_equal_a_loop_over_tokens():
    logits = logits_of(3).double().numpy()
    tokens, prompt = [5, 9, 5, 11, 11, 9, 11, 200], 3
    expected = logits.copy()
    for token in set(tokens):
        expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
    for token in tokens[prompt:]:
        expected[token] -= 0.4
    for token in set(tokens[prompt:]):
        expected[token] -= 0.25
    got = logits.copy()
    logit_filters.penalise(got, tokens, prompt, repetition=1.3, frequency=0.4, presence=0.25)
    assert got == pytest.approx(expected, abs=1e-12)


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


def test_nothing_left_to_draw_is_the_requests_fault():
    with pytest.raises(SpliceError) as caught:
        draw(torch.zeros(3), row([1], 1, (0, 1, 2), min_tokens=2))
    assert caught.value.code is ErrorCode.INVALID_REQUEST
