from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splice.bench.arrivals import Arrivals, Burst, Closed, Constant, Poisson, Traced, check, due_times
from wire.errors import SpliceError

OPEN = st.one_of(
    st.builds(Poisson, st.floats(0.01, 1e4)),
    st.builds(Constant, st.floats(0.01, 1e4)),
    st.builds(Burst, st.integers(1, 50), st.floats(0.001, 100.0)),
)


@given(OPEN, st.integers(0, 200), st.integers(0, 1000))
def test_times_begin_at_zero_ascend_and_depend_on_the_seed_alone(arrivals: Arrivals, count: int, seed: int) -> None:
    times = due_times(arrivals, count, (seed,))
    assert len(times) == count
    assert times == sorted(times)
    assert not times or times[0] == 0.0
    assert times == due_times(arrivals, count, (seed,))


def test_poisson_gaps_are_exponential() -> None:
    rate, count = 20.0, 20_000
    gaps = np.diff(due_times(Poisson(rate), count, (7,)))
    # Kolmogorov-Smirnov against the exponential distribution: 1.63 / sqrt(n) is the 1 % limit; the seed is fixed.
    ordered = np.sort(gaps)
    expected = 1.0 - np.exp(-rate * ordered)
    steps = np.arange(1, len(ordered) + 1) / len(ordered)
    assert np.abs(steps - expected).max() < 1.63 / np.sqrt(len(ordered))
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0.0, abs=0.03)


def test_other_seeds_give_other_times() -> None:
    assert due_times(Poisson(1.0), 5, (1,)) != due_times(Poisson(1.0), 5, (2,))


def test_a_constant_rate_is_even() -> None:
    assert due_times(Constant(4.0), 4, (0,)) == [0.0, 0.25, 0.5, 0.75]


def test_a_burst_comes_at_once() -> None:
    assert due_times(Burst(3, 2.0), 7, (0,)) == [0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 4.0]


def test_a_trace_is_played_from_its_first_line_at_any_speed_and_unit() -> None:
    assert due_times(Traced(), 3, (0,), (10.0, 10.5, 12.0)) == [0.0, 0.5, 2.0]
    assert due_times(Traced(speed=2.0), 2, (0,), (10.0, 10.5, 12.0)) == [0.0, 0.25]
    assert due_times(Traced(unit="ms"), 3, (0,), (1000.0, 1500.0, 3000.0)) == [0.0, 0.5, 2.0]


@pytest.mark.parametrize("arrivals", [Closed(0), Poisson(0.0), Constant(-1.0), Burst(2, 0.0), Poisson(float("inf"))])
def test_numbers_that_cannot_be_are_refused(arrivals: Arrivals) -> None:
    with pytest.raises(SpliceError, match="expected a number above 0"):
        check(arrivals)


def test_a_closed_loop_has_no_due_times() -> None:
    with pytest.raises(ValueError, match="closed loop"):
        due_times(Closed(1), 1, (0,))
