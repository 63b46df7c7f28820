"""The router's end of a worker's token stream: bytes come in, messages go on, without a task in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from wire.framing import FrameReader

OnMessage = Callable[[bytes], None]
OnEnd = Callable[[Exception | None], None]


class TokenStream(asyncio.Protocol):
    """Hands each message to `on_message`, in order, until the stream ends.

    `on_end` is called once: with None when the worker closed the stream, with the error when a message could not be
    handled. Not after `close`.
    """

    def __init__(self, ticket: bytes, on_message: OnMessage, on_end: OnEnd) -> None:
        self._ticket = ticket
        self._on_message = on_message
        self._on_end = on_end
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._is_open = True
        loop = asyncio.get_running_loop()
        self._first: asyncio.Future[None] = loop.create_future()
        """Resolved by the first message: the worker took the ticket."""
        self._ended: asyncio.Future[None] = loop.create_future()

    @classmethod
    async def join(
        cls, host: str, port: int, ticket: bytes, *, on_message: OnMessage, on_end: OnEnd, timeout_s: float
    ) -> TokenStream:
        """Returns once the first message was handled. Raises OSError or TimeoutError when there is no stream to be had
        with this ticket; `on_end` is not called then."""
        stream = cls(ticket, on_message, on_end)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().create_connection(lambda: stream, host, port)
                await stream._first
        except BaseException:
            stream.close()
            raise
        return stream

    async def hear_out(self, timeout_s: float) -> None:
        """Waits until what is still under way was handled and the worker has closed the stream, or `timeout_s`."""
        await asyncio.wait([self._ended], timeout=timeout_s)

    def close(self) -> None:
        """No message is handed on from now on."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own kind shares no base class with it
        if self._is_open:
            self._transport.write(self._ticket)
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                if not self._is_open:
                    return
                self._on_message(message)
                if not self._first.done():
                    self._first.set_result(None)
        except Exception as error:  # whatever a worker sends, the session alone must end over it
            self._lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(None)

    def _lost(self, error: Exception | None) -> None:
        if not self._is_open:
            return
        joined = self._first.done()
        if not joined:
            self._first.set_exception(ConnectionError("the worker refused the ticket") if error is None else error)
        self.close()
        if joined:
            self._on_end(error)

    def _end(self) -> None:
        self._is_open = False
        if not self._ended.done():
            self._ended.set_result(None)
