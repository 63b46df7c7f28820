from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.micro.cases import COUNTED, RELATED, Counted, Related, pool_churn, pool_reuse, python_yardstick
from benchmarks.micro.gate import COUNT_TOLERANCE, RATIO_TOLERANCE, count, judge_count, judge_ratio, read_baseline
from benchmarks.micro.instruments import Work, cost_ratio, count_instructions
from engine.blocks.block_pool import BlockPool


def repeated(times: int) -> Work:
    turn = python_yardstick()

    def work() -> None:
        for _ in range(times):
            turn()

    return work


@pytest.mark.parametrize("case", COUNTED[:3], ids=lambda case: case.name)
def test_instructions_are_counted_the_same_every_time(case: Counted) -> None:
    assert count(case) == count(case) > 1000


def test_instructions_of_callees_are_counted_and_add_up() -> None:
    once, ten, twenty = (count_instructions(repeated(times)) for times in (1, 10, 20))
    assert once > 400 * 5
    assert twenty - ten == pytest.approx(10 * (ten - once) / 9)


def test_tracing_ends_with_the_count_even_if_the_work_fails() -> None:
    import sys

    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError):
        count_instructions(lambda: 1 / 0)
    assert sys.gettrace() is before


def test_four_times_the_work_costs_about_four_times_as_much() -> None:
    ratio = cost_ratio(repeated(4), repeated(1))
    assert 4 / (1 + RATIO_TOLERANCE) < ratio < 4 * (1 + RATIO_TOLERANCE)


def test_the_pool_made_slower_is_noticed_by_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Counted("pool", pool_churn)
    baseline = count(case)
    assert not judge_count(case, baseline).is_worse
    release = BlockPool.release

    def slower(self: BlockPool, owner: object) -> None:
        for block in self.table(owner):
            self.generation(block)
        release(self, owner)

    monkeypatch.setattr(BlockPool, "release", slower)
    finding = judge_count(case, baseline)
    assert finding.is_worse
    assert finding.measured > baseline * (1 + COUNT_TOLERANCE)


def test_work_that_grows_with_the_pool_inside_native_code_is_noticed_by_its_ratio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Related("pool", lambda: pool_reuse(65_536), lambda: pool_reuse(1024))
    assert not judge_ratio(case, 1.0).is_worse
    release = BlockPool.release

    def scanning(self: BlockPool, owner: object) -> None:
        sum(self._refs)
        release(self, owner)

    monkeypatch.setattr(BlockPool, "release", scanning)
    assert judge_ratio(case, 1.0).is_worse


def test_a_ratio_above_its_limit_is_measured_again_before_it_counts() -> None:
    def judged(*seen: float) -> tuple[bool, int]:
        left: Iterator[float] = iter(seen)
        finding = judge_ratio(RELATED[0], 1.0, lambda _: next(left))
        return finding.is_worse, len(list(left))

    assert judged(1.2, 9.9, 9.9) == (False, 2)
    assert judged(1.4, 1.1, 9.9) == (False, 1)
    assert judged(1.5, 1.4, 1.6) == (True, 0)


def test_what_has_no_baseline_is_not_judged() -> None:
    assert not judge_count(COUNTED[1], None).is_worse


def test_every_case_has_a_baseline() -> None:
    baseline = read_baseline()
    assert baseline.counts
    assert baseline.ratios
    for ratios in baseline.ratios.values():
        assert {case.name for case in RELATED} == set(ratios)
    for counts in baseline.counts.values():
        assert {case.name for case in COUNTED} == set(counts)
