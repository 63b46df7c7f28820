"""Percentiles and bootstrap intervals, on plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95


def percentile(values: Sequence[float], rank: float) -> float | None:
    """The `rank` percentile, 0 to 100, linear between order statistics (Hyndman & Fan 1996, type 7); None if empty."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), rank)) if values else None


def median(values: Sequence[float]) -> float:
    return float(np.median(np.asarray(values, dtype=np.float64)))


def bootstrap_median(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Confidence interval of the median over repeats, by the percentile bootstrap (Efron & Tibshirani 1993, ch. 13)."""
    return _interval(_medians(values, np.random.default_rng((seed, 0))))


def bootstrap_ratio(baseline: Sequence[float], candidate: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Confidence interval of median(candidate) / median(baseline).

    Repeats are the unit: requests of one run share its server, its caches and its moment, so they are not independent.
    Baseline and candidate are resampled independently. Values must be positive.
    """
    if min(*baseline, *candidate) <= 0:
        raise ValueError("ratios need positive values")
    below = _medians(baseline, np.random.default_rng((seed, 1)))
    above = _medians(candidate, np.random.default_rng((seed, 2)))
    return _interval(above / below)


def _medians(values: Sequence[float], generator: np.random.Generator) -> NDArray[np.float64]:
    known = np.asarray(values, dtype=np.float64)
    picked = generator.integers(0, len(known), (RESAMPLES, len(known)))
    medians: NDArray[np.float64] = np.median(known[picked], axis=1)
    return medians


def _interval(estimates: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(estimates, (tail, 1.0 - tail))
    return float(low), float(high)
