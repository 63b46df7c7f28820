"""When to renew a lease and how long to wait for the answer. Pure: the time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIN_TTL_S = 2
"""etcd raises anything shorter: its election timeout bounds how fast it can notice an expiry."""

_RENEWALS_PER_TTL = 4
# Four a TTL: a lease revoked by an operator is noticed within TTL/4, and three renewals may fail before it runs out.


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease as its holder may believe in it: counted from when the confirmed request was *sent*, never later."""

    lease_id: int
    ttl_s: float
    confirmed_s: float
    """Monotonic seconds at which the last confirmed grant or renewal was sent."""

    def renewed(self, sent_s: float, ttl_s: float) -> HeldLease:
        return replace(self, ttl_s=ttl_s, confirmed_s=max(self.confirmed_s, sent_s))

    def remaining_s(self, now_s: float) -> float:
        """Seconds for which etcd is certain to keep the lease; 0 when it may already be gone."""
        return max(0.0, self.confirmed_s + self.ttl_s - now_s)

    def renew_in_s(self, now_s: float) -> float:
        """Seconds until the next renewal is due."""
        return max(0.0, self.confirmed_s + self.ttl_s / _RENEWALS_PER_TTL - now_s)

    def attempt_timeout_s(self, now_s: float) -> float:
        """How long one renewal may take: half of what remains, so that a frozen server leaves time for another try.

        A lease that may be gone has nothing left to save: it is asked for patiently, since a server that restarted
        on its old data often still has it, and a slow server must be allowed to answer.
        """
        half = self.remaining_s(now_s) / 2
        return half if half >= self.ttl_s / 16 else self.ttl_s
