"""The worker's end of one router's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from wire.v1 import worker_pb2

MAX_PENDING_MESSAGES = 10_000
"""A router this far behind reads no more: its session ends and its requests are cancelled."""


class RouterSession:
    """Messages on their way to one router. Any thread may `send`; the gRPC handler alone reads `messages`."""

    def __init__(
        self,
        router_id: str,
        worker_incarnation: int,
        loop: asyncio.AbstractEventLoop,
        on_overflow: Callable[[], object],
    ) -> None:
        """`on_overflow` is called once, on `loop`, when the router reads so slowly that the stream must be cut."""
        self.router_id = router_id
        self._on_overflow = on_overflow
        self._incarnation = worker_incarnation
        self._loop = loop
        self._pending: asyncio.Queue[worker_pb2.WorkerMessage | None] = asyncio.Queue()
        self._closed = False

    def send(self, **body: object) -> None:
        """Queues one WorkerMessage; `body` names its one field, for example `frame=StepFrame(...)`.

        Messages to a session that has ended are dropped: its requests have been cancelled.
        """
        if not self._closed:
            message = worker_pb2.WorkerMessage(incarnation=self._incarnation, **body)  # type: ignore[arg-type]
            self._loop.call_soon_threadsafe(self._enqueue, message)

    def close(self) -> None:
        """Ends `messages` after what is already queued. Called on the event loop."""
        self._closed = True
        self._pending.put_nowait(None)

    async def messages(self) -> AsyncIterator[worker_pb2.WorkerMessage]:
        while (message := await self._pending.get()) is not None:
            yield message

    def _enqueue(self, message: worker_pb2.WorkerMessage) -> None:
        if self._closed:
            return
        if self._pending.qsize() < MAX_PENDING_MESSAGES:
            self._pending.put_nowait(message)
            return
        # Whoever waits in `messages` waits for this router to read: only cutting the stream gets through to them.
        self.close()
        self._on_overflow()
