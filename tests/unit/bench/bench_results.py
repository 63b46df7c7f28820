"""Results made by hand, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from splice.bench.arrivals import Closed
from splice.bench.fingerprint import Environment
from splice.bench.resources import Resources
from splice.bench.result import Repeat, Result, Series, ServerIdentity
from splice.bench.sample import RequestSample
from splice.bench.summary import summarise
from splice.bench.workload import RandomPrompt, Slo, Workload

WORKLOAD = Workload(name="W", title="", requests=1, arrivals=Closed(1), prompt=RandomPrompt(8), output_tokens=11)


def sample(*, first_us: int = 20_000, gap_us: int = 5_000, tokens: int = 11, error: str | None = None) -> RequestSample:
    gaps = (gap_us,) * (tokens - 1)
    return RequestSample(
        index=0, due_us=0, sent_us=100, first_us=first_us, gaps_us=gaps, end_us=first_us + sum(gaps) + 50,
        prompt_tokens=8, output_tokens=tokens, wanted_tokens=tokens, finish="length", error=error,
    )  # fmt: skip


def repeat(samples: Sequence[RequestSample], *, wall_s: float = 1.0, foreign_cpu_s: float = 0.0) -> Repeat:
    return Repeat(
        number=0,
        began="2026-01-01T00:00:00+00:00",
        resources=Resources(client_cpu_s=0.1, foreign_cpu_s=foreign_cpu_s, wall_s=wall_s, cores=2),
        summary=summarise(samples, wall_s, Slo()),
        samples=tuple(samples),
    )


def series(
    gaps_us: Sequence[int],
    *,
    name: str = "splice",
    workload: Workload = WORKLOAD,
    model_digest: str | None = None,
    foreign_cpu_s: float = 0.0,
    error: str | None = None,
) -> Series:
    """One repeat per gap; a repeat's wall time is that of its one request."""
    repeats = []
    for gap_us in gaps_us:
        one = sample(gap_us=gap_us, error=error)
        repeats.append(repeat([one], wall_s=one.end_us / 1e6, foreign_cpu_s=foreign_cpu_s))
    identity = ServerIdentity(name=name, model="tiny", dialect="splice", model_digest=model_digest)
    return Series(server=identity, workload=workload, workload_digest=workload.digest, repeats=tuple(repeats))


def environment(**changes: object) -> Environment:
    fields: dict[str, object] = {
        "cpu_model": "CPU", "cpu_flags": ("avx2",), "cores": 2, "memory_bytes": 1 << 34, "kernel": "6.1",
        "governor": None, "python": "3.11", "packages": {}, "git_commit": None, "git_dirty": None, "host_digest": "0",
    }  # fmt: skip
    return Environment(**(fields | changes))  # type: ignore[arg-type]


def result(*all_series: Series, **changes: object) -> Result:
    return Result(began="2026-01-01T00:00:00+00:00", seed=0, environment=environment(**changes), series=all_series)
