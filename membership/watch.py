"""One watch: changes under a prefix, with signs of life between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from membership.channel import Members
from membership.errors import EtcdUnavailableError, WatchEndedError
from membership.view import KeyEvent
from wire.etcd import etcd_pb2, kv_pb2

_REQUIRE_LEADER = (("hasleader", "true"),)  # a member cut off from its cluster ends the watch instead of going silent


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """What one response carried: all events of its revisions, or none (a sign of life)."""

    events: tuple[KeyEvent, ...]
    revision: int
    """The member's revision. Of a sign of life it must not be used to resume: before etcd 3.5.8 it could overtake
    events that were still to come (etcd #15220)."""
    cluster_id: int


class WatchStream:
    """An async iterator of WatchBatch over one gRPC stream.

    It asks the server for progress every `progress_interval_s`, so a healthy stream is never silent for long: give
    `next` a timeout of a few intervals to find a stuck one. Errors: WatchEndedError when etcd ended the watch,
    EtcdUnavailableError when the stream broke or stayed silent. It never resumes by itself.
    """

    def __init__(
        self, members: Members, prefix: str, range_end: bytes, start_revision: int, progress_interval_s: float
    ) -> None:
        self._members = members
        self._prefix = prefix
        self._range_end = range_end
        self._start_revision = start_revision
        self._progress_interval_s = progress_interval_s
        self._member = members.current
        self._call = self._member.watch.Watch(self._requests(), metadata=_REQUIRE_LEADER)
        self._responses = aiter(self._call)

    async def next(self, timeout_s: float | None = None) -> WatchBatch:
        try:
            async with asyncio.timeout(timeout_s):  # not wait_for: it forgets a cancellation that comes with a response
                response = await anext(self._responses)
        except TimeoutError:
            raise self._broken(f"silent for {timeout_s} s") from None
        except StopAsyncIteration:
            raise self._broken("the server ended the stream") from None
        except grpc.aio.AioRpcError as error:
            raise self._broken(f"{error.code().name} {error.details()}") from error
        if response.canceled:
            raise WatchEndedError(
                response.cancel_reason or f"history is compacted up to {response.compact_revision}",
                response.compact_revision,
            )
        events = tuple(_event(event) for event in response.events)
        return WatchBatch(events, response.header.revision, response.header.cluster_id)

    def close(self) -> None:
        self._call.cancel()

    def __aiter__(self) -> AsyncIterator[WatchBatch]:
        return self

    async def __anext__(self) -> WatchBatch:
        return await self.next(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _requests(self) -> AsyncIterator[Any]:
        yield etcd_pb2.WatchRequest(
            create_request=etcd_pb2.WatchCreateRequest(
                key=self._prefix.encode(),
                range_end=self._range_end,
                start_revision=self._start_revision,
                progress_notify=True,
            )
        )
        while True:
            await asyncio.sleep(self._progress_interval_s)
            yield etcd_pb2.WatchRequest(progress_request=etcd_pb2.WatchProgressRequest())

    def _broken(self, cause: str) -> EtcdUnavailableError:
        self._members.failed(self._member)
        self.close()
        return EtcdUnavailableError(
            self._members.addresses, f"watch {self._prefix}", [f"{self._member.address}: {cause}"]
        )


def _event(event: kv_pb2.Event) -> KeyEvent:
    value = None if event.type == kv_pb2.Event.DELETE else event.kv.value
    return KeyEvent(event.kv.key.decode(errors="backslashreplace"), value, event.kv.mod_revision)
