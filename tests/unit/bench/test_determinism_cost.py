"""What two ways to a result cost beside each other, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat

from benchmarks.kernels.determinism import Pair, measured


class Clock:
    """Goes on only while something works."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def work(self, takes_s: Iterator[float]) -> Callable[[], object]:
        def once() -> None:
            self.now_s += next(takes_s)

        return once


def test_the_least_time_of_either_side_counts() -> None:
    clock = Clock()
    fixed, free = clock.work(chain([9.0, 3.0], repeat(4.0))), clock.work(chain([5.0, 5.0, 2.0], repeat(6.0)))
    cost = measured(Pair("split", "a product", fixed, free, clock), budget_s=0.0)
    assert (cost.fixed_us, cost.free_us, cost.ratio) == (3e6, 2e6, 1.5)
    assert (cost.question, cost.name) == ("split", "a product")


def test_both_sides_take_turns() -> None:
    clock, order = Clock(), list[str]()
    work = clock.work(repeat(1.0))
    pair = Pair("split", "order", _noted(order, "fixed", work), _noted(order, "free", work), clock)
    measured(pair, budget_s=0.0)
    assert order == ["fixed", "free"] * 7


def _noted(order: list[str], name: str, work: Callable[[], object]) -> Callable[[], object]:
    def once() -> None:
        order.append(name)
        work()

    return once
