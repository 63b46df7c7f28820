"""When to renew and how long to wait: plain arithmetic of time."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from membership.backoff import Backoff
from membership.lease import HeldLease


def test_a_renewal_counts_from_when_it_was_sent() -> None:
    lease = HeldLease(1, 5.0, 100.0).renewed(sent_s=101.0, ttl_s=5.0)
    assert lease.remaining_s(103.0) == 3.0
    assert lease.renewed(sent_s=99.0, ttl_s=5.0).remaining_s(103.0) == 3.0, "an older confirmation adds nothing"
    assert lease.remaining_s(200.0) == 0.0


def test_latency_below_a_third_of_the_ttl_never_times_a_renewal_out() -> None:
    lease = HeldLease(1, 6.0, 0.0)
    assert lease.attempt_timeout_s(lease.renew_in_s(0.0)) > 2.0


@given(st.floats(2, 60), st.floats(0, 100))
def test_a_renewal_of_a_live_lease_leaves_time_for_another(ttl_s: float, elapsed_s: float) -> None:
    lease = HeldLease(1, ttl_s, 0.0)
    timeout_s = lease.attempt_timeout_s(elapsed_s)
    assert timeout_s > 0
    if lease.remaining_s(elapsed_s) > ttl_s / 8:
        assert timeout_s <= lease.remaining_s(elapsed_s) / 2
    else:
        assert timeout_s == ttl_s, "nothing left to save: a slow server may take its time"


def test_backoff_grows_to_its_cap_with_jitter_and_starts_over() -> None:
    backoff = Backoff(random.Random(1), first_s=0.1, cap_s=1.0)
    delays = [backoff.next_s() for _ in range(30)]
    assert 0.05 <= delays[0] <= 0.1
    assert all(0.5 <= delay <= 1.0 for delay in delays[5:])
    assert len(set(delays)) == len(delays)
    backoff.reset()
    assert backoff.next_s() <= 0.1
