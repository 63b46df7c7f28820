"""The one failure that ends a worker: its device computes nothing any more. Without torch, for those who only catch
it."""

from __future__ import annotations

from wire.errors import ErrorCode, SpliceError


class DeviceLost(SpliceError):
    """Nothing that was computed since the last step can be trusted, and nothing will be computed: the process ends,
    others go on with its requests. Neither the request at hand nor its neighbours are at fault."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.WORKER_LOST, message)
