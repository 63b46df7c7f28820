from __future__ import annotations

import pytest

from splice.bench.summary import distribution, meets, summarise
from splice.bench.workload import Slo
from tests.unit.bench.bench_results import sample


def test_figures_of_one_request_are_what_they_are_called() -> None:
    one = sample(first_us=20_000, gap_us=5_000, tokens=11)
    summary = summarise([one], 0.1, Slo())
    assert summary.output_tokens_per_s == pytest.approx(110)
    assert summary.prompt_tokens_per_s == pytest.approx(80)
    assert (summary.completed, summary.failed, summary.pieces_per_token) == (1, 0, 1.0)
    for found, expected in (
        (summary.ttft_ms, 20.0),
        (summary.tpot_ms, 5.0),
        (summary.itl_ms, 5.0),
        (summary.e2e_ms, 70.05),
    ):
        assert found is not None
        assert found.p50 == found.p99 == found.max == found.mean == pytest.approx(expected)


def test_gaps_of_all_requests_count_alike_so_that_a_stall_shows_in_the_tail() -> None:
    steady = [sample(gap_us=1_000) for _ in range(9)]
    summary = summarise([*steady, sample(gap_us=100_000)], 1.0, Slo())
    assert summary.itl_ms is not None
    assert (summary.itl_ms.p50, summary.itl_ms.p90 < 100, summary.itl_ms.p95, summary.itl_ms.max) == (1, True, 100, 100)


def test_tpot_divides_by_tokens_and_not_by_pieces() -> None:
    bundled = sample(gap_us=20_000, tokens=3)
    assert bundled.tpot_us == 20_000
    import msgspec

    assert msgspec.structs.replace(bundled, output_tokens=9).tpot_us == 5_000
    assert summarise([msgspec.structs.replace(bundled, output_tokens=9)], 1.0, Slo()).pieces_per_token < 0.5


def test_failed_requests_count_for_nothing_but_as_failed() -> None:
    summary = summarise([sample(), sample(error="gone", first_us=1)], 1.0, Slo())
    assert (summary.completed, summary.failed) == (1, 1)
    assert summary.output_tokens_per_s == pytest.approx(11)
    assert summary.ttft_ms is not None
    assert summary.ttft_ms.p50 == 20.0
    assert summary.goodput_share == 0.5


def test_a_run_of_nothing_but_failures_has_no_latencies() -> None:
    summary = summarise([sample(error="gone")], 1.0, Slo())
    assert summary.ttft_ms is None
    assert summary.itl_ms is None
    assert summary.output_tokens_per_s == 0


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(), True),
        (Slo(ttft_ms=20), True),
        (Slo(ttft_ms=19.9), False),
        (Slo(tpot_ms=5), True),
        (Slo(tpot_ms=4.9), False),
        (Slo(max_gap_ms=4.9), False),
        (Slo(e2e_ms=70), False),
        (Slo(ttft_ms=100, tpot_ms=100, max_gap_ms=100, e2e_ms=100), True),
        (Slo(ttft_ms=100, tpot_ms=100, max_gap_ms=1, e2e_ms=100), False),
    ],
)
def test_goodput_counts_requests_that_met_every_limit(slo: Slo, good: bool) -> None:
    one = sample(first_us=20_000, gap_us=5_000, tokens=11)
    assert meets(one, slo) is good
    assert summarise([one], 2.0, slo).goodput_per_s == (0.5 if good else 0.0)


def test_a_distribution_of_nothing_is_nothing() -> None:
    assert distribution([]) is None
