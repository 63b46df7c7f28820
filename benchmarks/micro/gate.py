"""Judges measurements against a recorded baseline."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.micro.cases import COUNTED, RELATED, Counted, Related
from benchmarks.micro.instruments import cost_ratio, count_instructions
from splice.bench.fingerprint import read_environment

BASELINE = Path(__file__).parent / "baseline.json"
COUNT_TOLERANCE = 0.03
RATIO_TOLERANCE = 0.30
"""Seen on two cores under a load of 8 to 12: single measurements between 0.93 and 1.18 of the baseline."""
ATTEMPTS = 3
"""A ratio above its limit is measured again: neighbours come and go, a regression stays."""


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By case, beneath what they depend on."""

    counts: dict[str, dict[str, int]]
    """By minor version of Python: compilers differ."""
    ratios: dict[str, dict[str, float]]
    """By instruction set: a yardstick may gain more from a wider one than the work does."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What a baseline holds for."""

    python: str
    instruction_set: str


def this_platform() -> Platform:
    flags = read_environment().cpu_flags
    isa = next((name for name in ("avx512f", "avx2", "asimd") if name in flags), "other")
    return Platform(f"{sys.version_info.major}.{sys.version_info.minor}", isa)


@dataclass(frozen=True, slots=True)
class Finding:
    """`baseline` None: nothing to judge by."""

    case: str
    measured: float
    baseline: float | None
    limit: float | None

    @property
    def is_worse(self) -> bool:
        return self.limit is not None and self.measured > self.limit


def count(case: Counted) -> int:
    """The second call's instructions: the first may build what later ones keep."""
    work = case.make()
    work()
    return count_instructions(work)


def judge_count(case: Counted, baseline: int | None) -> Finding:
    limit = None if baseline is None else baseline * (1.0 + COUNT_TOLERANCE)
    return Finding(case.name, count(case), baseline, limit)


def relate(case: Related) -> float:
    return cost_ratio(case.make(), case.yardstick())


def judge_ratio(case: Related, baseline: float | None, measure: Callable[[Related], float] = relate) -> Finding:
    """The least of up to `ATTEMPTS` measurements, stopping at the first within the limit."""
    limit = None if baseline is None else baseline * (1.0 + RATIO_TOLERANCE)
    measured = measure(case)
    for _ in range(ATTEMPTS - 1):
        if limit is None or measured <= limit:
            break
        measured = min(measured, measure(case))
    return Finding(case.name, measured, baseline, limit)


def judge_all(baseline: Baseline, platform: Platform) -> list[Finding]:
    counts = baseline.counts.get(platform.python, {})
    ratios = baseline.ratios.get(platform.instruction_set, {})
    findings = [judge_count(case, counts.get(case.name)) for case in COUNTED]
    return findings + [judge_ratio(case, ratios.get(case.name)) for case in RELATED]


def read_baseline(path: Path = BASELINE) -> Baseline:
    return msgspec.json.decode(path.read_bytes(), type=Baseline)


def updated(before: Baseline, platform: Platform) -> Baseline:
    """A new baseline: this platform's figures measured again, those of others as they were."""
    counts = {case.name: count(case) for case in COUNTED}
    ratios = {case.name: round(min(relate(case) for _ in range(ATTEMPTS)), 4) for case in RELATED}
    return Baseline({**before.counts, platform.python: counts}, {**before.ratios, platform.instruction_set: ratios})
