"""What can go wrong between us and etcd."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from wire.errors import ErrorCode, SpliceError


class EtcdError(SpliceError):
    """etcd answered with an error; `status` is its gRPC status."""

    def __init__(
        self, message: str, *, status: grpc.StatusCode | None = None, code: ErrorCode = ErrorCode.INTERNAL_ERROR
    ) -> None:
        super().__init__(code, message, param="etcd_endpoints")
        self.status = status


class EtcdUnavailableError(EtcdError):
    """No endpoint answered in time."""

    def __init__(self, endpoints: Sequence[str], what: str, causes: Sequence[str]) -> None:
        why = "; ".join(causes) or "no attempt fitted the time"
        super().__init__(
            f"etcd did not answer {what} at {', '.join(endpoints)} ({why}); "
            "check that etcd runs there and is reachable, or name other endpoints with --etcd-endpoints "
            "(without it, `splice serve` starts its own etcd)",
            code=ErrorCode.MISSING_PART,
        )


class LeaseNotFoundError(EtcdError):
    """The lease expired, was revoked, or belongs to data that is gone."""

    def __init__(self, lease_id: int) -> None:
        super().__init__(f"etcd has no lease {lease_id:x}; grant a new one", status=grpc.StatusCode.NOT_FOUND)
        self.lease_id = lease_id


class WatchEndedError(EtcdError):
    """etcd ended a watch. `compact_revision` > 0: the events asked for are compacted away. List again."""

    def __init__(self, reason: str, compact_revision: int) -> None:
        super().__init__(f"etcd ended the watch: {reason}; list again and watch from there")
        self.compact_revision = compact_revision
