"""The class that Ray makes into an actor."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import ray.util

from splice.cluster.placement_job import NODE_HOST, Outcome
from splice.cluster.roles import role_builder
from wire.errors import ErrorCode, SpliceError
from worker.actor import WorkerActor
from worker.settings import WorkerSettings


class PlacedWorker(WorkerActor):
    """A WorkerActor whose results are plain bytes, so that nothing but bytes is unpickled by whoever asked."""

    def __init__(self, settings: WorkerSettings) -> None:
        if settings.host == NODE_HOST:
            settings = msgspec.structs.replace(settings, host=_node_address())
        super().__init__(settings, role_builder(settings.role))

    def started(self, timeout_s: float) -> bytes:
        return msgspec.json.encode(_outcome(lambda: self.record(timeout_s).encode()))


def _node_address() -> str:
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


def _outcome(start: Callable[[], bytes]) -> Outcome:
    try:
        return Outcome(record=start())
    except SpliceError as error:
        return Outcome(error=(error.code.value, error.message, error.param))
    except Exception as error:
        return Outcome(error=(ErrorCode.INTERNAL_ERROR.value, f"{type(error).__name__}: {error}", None))
