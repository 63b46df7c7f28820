"""What one request holds against workers: whom it avoids, and when it is itself the suspect."""

from __future__ import annotations

from router.events import WorkerKey
from wire.errors import ErrorCode, SpliceError

QUARANTINE_AFTER = 2
"""Distinct workers a request may be seen to bring down."""

REFUSALS = frozenset({ErrorCode.OVERLOADED, ErrorCode.DRAINING, ErrorCode.RATE_LIMIT_EXCEEDED})
_TRANSFER_FAULTS = frozenset(
    {
        ErrorCode.KV_TRANSFER_FAILED,
        ErrorCode.KV_DIGEST_MISMATCH,
        ErrorCode.INCARNATION_MISMATCH,
        ErrorCode.LAYOUT_MISMATCH,
    }
)
_INTERNAL_ONLY = _TRANSFER_FAULTS | {ErrorCode.WORKER_LOST}


class Blame:
    """Grows by one `charge` an attempt given up. Refusals and broken transfers bring nobody down."""

    def __init__(self) -> None:
        self.failures = 0
        self.last_error: SpliceError | None = None
        self.excluded: set[WorkerKey] = set()
        self._downed: set[WorkerKey] = set()
        self._suspects: set[WorkerKey] = set()

    def charge(self, worker: WorkerKey, error: SpliceError) -> None:
        """`worker` is why an attempt ended."""
        self.failures += 1
        self.last_error = error
        self.excluded.add(worker)
        if error.code in _TRANSFER_FAULTS:
            # A broken transfer is often the first sign of a dying source: remember whom to count if it is lost.
            self._suspects.add(worker)
        elif error.code not in REFUSALS:
            self._downed.add(worker)

    def lost(self, worker: WorkerKey) -> None:
        """Nothing was in this worker's hands any more when it went down."""
        if worker in self._suspects:
            self._downed.add(worker)

    def forgive(self) -> bool:
        """Lets those be tried again that failed only in passing; False if there are none."""
        forgivable = self.excluded - self._downed
        self.excluded -= forgivable
        return bool(forgivable)

    def verdict(self, max_attempts: int) -> SpliceError | None:
        """Why the request must not be tried again; None while it may."""
        if len(self._downed) >= QUARANTINE_AFTER:
            return SpliceError(
                ErrorCode.INTERNAL_ERROR,
                f"quarantined: {len(self._downed)} workers went down while they had this request in hand; "
                "it is not tried on another one",
            )
        if self.last_error is not None and self.failures >= max_attempts:
            return self.public(self.last_error)
        return None

    def public(self, error: SpliceError) -> SpliceError:
        """What a client sees of it."""
        if is_public(error):
            return error
        return SpliceError(
            ErrorCode.INTERNAL_ERROR, f"every one of {self.failures} attempts failed, the last with {error.code.value}"
        )


def is_public(error: SpliceError) -> bool:
    """Faults between workers are nothing to a client."""
    return error.code not in _INTERNAL_ONLY
