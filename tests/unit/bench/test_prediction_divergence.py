"""Figures of one run's predictions beside another's, from cases small enough to know."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.kernels.divergence import Tally, log_softmax

LN = np.log


def test_log_softmax_gives_probabilities_that_sum_to_one_for_any_logits() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [1e4, -1e4, 1e4]], dtype=np.float32)
    found = np.exp(log_softmax(logits))
    assert found.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert found[1].tolist() == [0.5, 0.0, 0.5]
    assert logits.tolist() == [[1.0, 2.0, 3.0], [1e4, -1e4, 1e4]]


def test_a_run_beside_itself_has_no_divergence() -> None:
    run, tally = log_softmax(np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)), Tally()
    tally.add(run, run, np.arange(5))
    figures = tally.figures()
    assert (figures.mean_kl, figures.largest_kl, figures.perplexity_change, figures.same_first_choice) == (0, 0, 0, 1)
    assert figures.are_within_bounds


def test_figures_of_two_predictions_added_apart() -> None:
    tally = Tally()
    tally.add(LN([[0.5, 0.5]]), LN([[0.75, 0.25]]), np.array([0]))
    tally.add(LN([[0.9, 0.1]]), LN([[0.2, 0.8]]), np.array([1]))
    figures = tally.figures()
    divergences = 0.5 * LN(0.5 / 0.75) + 0.5 * LN(0.5 / 0.25), 0.9 * LN(0.9 / 0.2) + 0.1 * LN(0.1 / 0.8)
    assert tally.count == 2
    assert figures.mean_kl == pytest.approx(sum(divergences) / 2, abs=1e-6)
    assert figures.largest_kl == pytest.approx(max(divergences), abs=1e-4)
    assert figures.perplexity == pytest.approx((0.75 * 0.8) ** -0.5, abs=1e-4)
    assert figures.perplexity_change == pytest.approx((0.5 * 0.1 / (0.75 * 0.8)) ** 0.5 - 1, abs=1e-6)
    assert figures.same_first_choice == 0.5


@pytest.mark.parametrize(("other", "within"), [([0.5, 0.5], True), ([0.505, 0.495], True), ([0.4, 0.6], False)])
def test_either_bound_decides(other: list[float], within: bool) -> None:
    tally = Tally()
    tally.add(LN([[0.5, 0.5]]), LN([other]), np.array([0]))
    assert tally.figures().are_within_bounds is within
