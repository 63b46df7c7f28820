"""The worker's end of one router's stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

from wire.v1 import worker_pb2
from worker.token_stream import TokenStream

MAX_PENDING_MESSAGES = 10_000
"""A router this far behind reads no more: its session ends and its requests are cancelled."""


class RouterSession:
    """Messages on their way to one router. Any thread may `send`.

    They travel over the session's own gRPC stream, whose handler alone reads `messages`, until the router joins a
    token stream; from then on they are written there.
    """

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
        self._tokens: TokenStream | None = None
        self._closed = False

    def send(self, **body: object) -> None:
        """Sends one WorkerMessage; `body` names its one field, for example `frame=StepFrame(...)`.

        Messages to a session that has ended are dropped: its requests have been cancelled.
        """
        if self._closed:
            return
        message = worker_pb2.WorkerMessage(incarnation=self._incarnation, **body)  # type: ignore[arg-type]
        if self._tokens is not None:
            self._tokens.write(message.SerializeToString())
        else:
            self._loop.call_soon_threadsafe(self._enqueue, message)

    def join(self, connection: socket.socket) -> None:
        """Messages travel over `connection` from now on. Called on the event loop, before any request came: order
        between the two streams is nobody's concern then."""
        if self._closed:
            connection.close()
        else:
            self._tokens = TokenStream(connection, self._loop, self.close)

    def close(self) -> None:
        """Ends `messages` after what is already queued. Called on the event loop."""
        self._closed = True
        self._pending.put_nowait(None)
        if self._tokens is not None:
            self._tokens.close()

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
