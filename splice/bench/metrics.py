"""The figures that are shown and compared, each with its direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from splice.bench.result import Repeat
from splice.bench.summary import Distribution

Reader = Callable[[Repeat], float | None]


@dataclass(frozen=True, slots=True)
class Metric:
    """`read` gives one repeat's figure, or None where it has none."""

    name: str
    unit: str
    higher_is_better: bool
    read: Reader


def _of(name: str, figure: str) -> Reader:
    def read(repeat: Repeat) -> float | None:
        found: Distribution | None = getattr(repeat.summary, name)
        return None if found is None else float(getattr(found, figure))

    return read


COMPARED = (
    Metric("output tokens/s", "1/s", True, lambda repeat: repeat.summary.output_tokens_per_s),
    Metric("TTFT p50", "ms", False, _of("ttft_ms", "p50")),
    Metric("TTFT p95", "ms", False, _of("ttft_ms", "p95")),
    Metric("TPOT p50", "ms", False, _of("tpot_ms", "p50")),
    Metric("ITL p95", "ms", False, _of("itl_ms", "p95")),
    Metric("E2E p50", "ms", False, _of("e2e_ms", "p50")),
)
"""What `compare` judges."""

SHOWN = (
    COMPARED[0],
    COMPARED[1],
    COMPARED[2],
    Metric("ITL p50", "ms", False, _of("itl_ms", "p50")),
    COMPARED[4],
    Metric("ITL max", "ms", False, _of("itl_ms", "max")),
    COMPARED[5],
    Metric("goodput", "1/s", True, lambda repeat: repeat.summary.goodput_per_s),
    Metric("CPU", "s", False, lambda repeat: repeat.resources.cpu_s),
    Metric("PSS", "MB", False, lambda repeat: _megabytes(repeat.resources.pss_bytes)),
    Metric("peak RSS", "MB", False, lambda repeat: _megabytes(repeat.resources.peak_rss_bytes)),
    Metric("foreign CPU", "%", False, lambda repeat: 100.0 * repeat.resources.foreign_share),
)
"""What `show` and `plot` can give."""


def _megabytes(value: int | None) -> float | None:
    return None if value is None else value / 1e6


def values(metric: Metric, repeats: tuple[Repeat, ...]) -> list[float]:
    """One figure per repeat that has it."""
    return [value for repeat in repeats if (value := metric.read(repeat)) is not None]
