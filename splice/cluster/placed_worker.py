"""The class that Ray makes into an actor. Importing it is cheap: whoever places one needs none of a worker's parts."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from splice.cluster.placement_job import NODE_HOST, Outcome
from wire.errors import ErrorCode, SpliceError
from worker.settings import WorkerSettings

PARTS = ("splice.cluster.roles", "worker.actor")
"""Modules that a worker is made of. Ray's processes import them while nothing else is to be done yet."""


class PlacedWorker:
    """A WorkerActor whose results are plain bytes, so that nothing but bytes is unpickled by whoever asked."""

    def __init__(self, settings: WorkerSettings) -> None:
        from splice.cluster.roles import role_builder  # noqa: PLC0415 (whoever asks for a worker needs none of it)
        from worker.actor import WorkerActor  # noqa: PLC0415

        if settings.host == NODE_HOST:
            settings = msgspec.structs.replace(settings, host=_node_address())
        self._worker = WorkerActor(settings, role_builder(settings.role))

    def started(self, timeout_s: float) -> bytes:
        return msgspec.json.encode(_outcome(lambda: self._worker.record(timeout_s).encode()))

    def stop(self, timeout_s: float) -> bool:
        """See `WorkerActor.stop`."""
        return self._worker.stop(timeout_s)


def _node_address() -> str:
    import ray.util  # noqa: PLC0415 (runs in a process of Ray's, which has it)

    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's
    return address


def _outcome(start: Callable[[], bytes]) -> Outcome:
    try:
        return Outcome(record=start())
    except SpliceError as error:
        return Outcome(error=(error.code.value, error.message, error.param))
    except Exception as error:
        return Outcome(error=(ErrorCode.INTERNAL_ERROR.value, f"{type(error).__name__}: {error}", None))
