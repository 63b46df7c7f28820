"""Is B better than A, worse, or can that not be said? "Not comparable" is an answer, with its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from splice.bench.fingerprint import Environment
from splice.bench.metrics import COMPARED, values
from splice.bench.result import Series
from splice.bench.statistics import bootstrap_ratio, median

MIN_REPEATS = 3
FOREIGN_SHARE = 0.05
"""Of the machine's CPU time: above it, somebody else was measured too."""
TOLERANCE = 0.03
"""Ratios this near to 1 are no regression, however sure they are."""

ALLOWABLE = ("machine", "model", "noise", "repeats")
"""Reasons that `--allow` can set aside. Other workloads and failed requests cannot be."""


class Judgement(Enum):
    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    """The interval lies within the tolerance."""
    UNCLEAR = "unclear"
    """The interval holds both 1 and a difference that would matter."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one workload. `ratio` is candidate / baseline, of medians over repeats."""

    workload: str
    metric: str
    unit: str
    baseline: float
    candidate: float
    ratio: float
    low: float
    high: float
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Verdict:
    """`obstacles` not empty: not comparable, and no comparison was made."""

    comparisons: tuple[Comparison, ...]
    obstacles: tuple[str, ...]

    @property
    def is_worse(self) -> bool:
        return any(each.judgement is Judgement.WORSE for each in self.comparisons)


def judge(
    baseline: Sequence[Series],
    candidate: Sequence[Series],
    environments: tuple[Environment, Environment],
    *,
    allow: frozenset[str] = frozenset(),
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Compares workload by workload, of those both have. Each workload appears once in each sequence."""
    pairs = _pairs(baseline, candidate)
    obstacles = [] if "machine" in allow else _other_machine(*environments)
    if not pairs:
        obstacles.append(
            f"no workload in common: {_names(baseline)} against {_names(candidate)} (names and contents must be equal)"
        )
    for pair in pairs:
        obstacles += _obstacles(*pair, allow)
    if obstacles:
        return Verdict((), tuple(dict.fromkeys(obstacles)))
    return Verdict(tuple(each for pair in pairs for each in _compare(*pair, tolerance)), ())


def decide(low: float, high: float, *, higher_is_better: bool, tolerance: float) -> Judgement:
    """From a ratio's confidence interval to words."""
    if 1.0 - tolerance <= low and high <= 1.0 + tolerance:
        return Judgement.SAME
    if low > 1.0:
        return Judgement.BETTER if higher_is_better else Judgement.WORSE
    if high < 1.0:
        return Judgement.WORSE if higher_is_better else Judgement.BETTER
    return Judgement.UNCLEAR


def _pairs(baseline: Sequence[Series], candidate: Sequence[Series]) -> list[tuple[Series, Series]]:
    known = {(series.workload.name, series.workload_digest): series for series in candidate}
    return [
        (series, other)
        for series in baseline
        if (other := known.get((series.workload.name, series.workload_digest))) is not None
    ]


def _other_machine(first: Environment, second: Environment) -> list[str]:
    return [
        f"another machine: {name} is {getattr(first, name)} against {getattr(second, name)}"
        for name in ("cpu_model", "cpu_flags", "cores")
        if getattr(first, name) != getattr(second, name)
    ]


def _obstacles(first: Series, second: Series, allow: frozenset[str]) -> list[str]:
    found = []
    models = (first.server.model_digest, second.server.model_digest)
    if "model" not in allow and None not in models and models[0] != models[1]:
        found.append(f"other weights: {first.server.name} and {second.server.name} were given different files")
    for series in (first, second):
        where = f"{series.server.name}, workload {series.workload.name}"
        if failed := sum(
            repeat.summary.failed + sum(s.error is not None for s in repeat.beside) for repeat in series.repeats
        ):
            found.append(f"{where}: {failed} requests failed, so the work was not equal")
        if "repeats" not in allow and len(series.repeats) < MIN_REPEATS:
            found.append(f"{where}: {len(series.repeats)} repeats, expected at least {MIN_REPEATS}")
        noisy = [repeat.resources.foreign_share for repeat in series.repeats]
        if "noise" not in allow and max(noisy, default=0.0) > FOREIGN_SHARE:
            found.append(
                f"{where}: other processes took {100 * max(noisy):.0f} % of the machine, more than "
                f"{100 * FOREIGN_SHARE:.0f} %"
            )
    return found


def _compare(first: Series, second: Series, tolerance: float) -> list[Comparison]:
    found = []
    for metric in COMPARED:
        before, after = values(metric, first.repeats), values(metric, second.repeats)
        if not before or not after or min(*before, *after) <= 0:
            continue
        low, high = bootstrap_ratio(before, after)
        found.append(
            Comparison(
                workload=first.workload.name,
                metric=metric.name,
                unit=metric.unit,
                baseline=median(before),
                candidate=median(after),
                ratio=median(after) / median(before),
                low=low,
                high=high,
                judgement=decide(low, high, higher_is_better=metric.higher_is_better, tolerance=tolerance),
            )
        )
    return found


def _names(series: Sequence[Series]) -> str:
    return ", ".join(each.workload.name for each in series) or "none"
