"""A lean HTTP/1.1 client for streamed answers: httptools parses, one protocol object per connection, no layers between.

The client shares the machine with the server it measures, so its cost per token is part of the result: about 30 µs of
CPU with 8 streams, waking up and reading included (Zen 3 core, others busy). Times are taken once per read, before
anything is parsed.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from wire.errors import ErrorCode, SpliceError

CONNECT_S = 10.0
READ_BYTES = 1 << 20
"""Most of an error body that is kept."""


class BodySink(Protocol):
    """Takes an answer's body as it comes; `now_s` is `time.perf_counter()` at the read."""

    def feed(self, now_s: float, chunk: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. `prefix` comes before every path."""

    host: str
    port: int
    tls: bool
    prefix: str
    headers: Mapping[str, str] = field(default_factory=dict)


def parse_target(url: str, api_key: str | None) -> Target:
    """`http://host:port[/prefix]`, with or without a final `/v1`. Raises SpliceError(bad_setting)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SpliceError(ErrorCode.BAD_SETTING, f"{url!r} is no address: {error}", param="url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"{url!r} is no address; expected http://host:port or https://host", param="url"
        )
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return Target(parts.hostname, port or (443 if tls else 80), tls, prefix, headers)


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time. Use through `ConnectionPool`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._sink: BodySink | None = None
        self._done: asyncio.Future[None] | None = None
        self._now_s = 0.0
        self.status = 0
        self.error_body = b""
        self.reusable = False
        self.received = False
        """Whether any byte of the current answer came."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own kind shares no base class with it
        self.reusable = True

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        self.received = True
        if self._parser is None or self._done is None:
            self.close()  # bytes nobody asked for: this connection cannot be trusted any more
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(SpliceError(ErrorCode.INTERNAL_ERROR, f"the server does not speak HTTP/1.1: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        if self._done is not None and not self._done.done():
            why = f" ({exc})" if exc else ""
            self._end(
                SpliceError(ErrorCode.INTERNAL_ERROR, f"the connection broke off in the middle of an answer{why}")
            )

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 (it is calling)
        self.status = self._parser.get_status_code()

    def on_body(self, chunk: bytes) -> None:
        if self.status == 200:
            if self._sink is None:
                return
            try:
                self._sink.feed(self._now_s, chunk)
            except SpliceError as error:  # the parser would swallow its words
                self._sink = None
                self._end(error)
        elif len(self.error_body) < READ_BYTES:
            self.error_body += chunk

    def on_message_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 (it is calling)
        self.reusable = self.reusable and self._parser.should_keep_alive()
        self._end(None)

    async def exchange(self, head_and_body: bytes, sink: BodySink) -> None:
        """Sends one request and feeds its answer to `sink` until it is complete. Raises SpliceError if it never is."""
        if self._transport is None:
            raise ValueError("not connected yet")
        self._parser, self._sink = httptools.HttpResponseParser(self), sink
        self.status, self.error_body, self.received = 0, b"", False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(head_and_body)
        try:
            await self._done
        finally:
            self._parser = self._sink = self._done = None

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.close()

    def _end(self, error: SpliceError | None) -> None:
        if error is not None:
            self.close()
        if self._done is None or self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)


class ConnectionPool:
    """Keeps idle connections for the next request, as clients of the OpenAI API do."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if target.tls else None

    def encode(self, path: str, body: bytes, *, method: str = "POST") -> bytes:
        """A whole request as bytes, made before it is due."""
        target = self.target
        lines = [
            f"{method} {target.prefix}{path} HTTP/1.1",
            f"host: {target.host}:{target.port}",
            "accept: text/event-stream, application/json",
            *(f"{name}: {value}" for name, value in target.headers.items()),
        ]
        if method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def send(self, request: bytes, sink: BodySink) -> tuple[int, bytes]:
        """One exchange: its status and, unless that is 200, its body. Raises SpliceError if no complete answer came.

        A kept connection that the server closed in the meantime is replaced, once, by a new one.
        """
        connection, kept = await self._take()
        try:
            try:
                await connection.exchange(request, sink)
            except SpliceError:
                if not kept or connection.received:
                    raise
                connection = await self._open()
                await connection.exchange(request, sink)
            return connection.status, connection.error_body
        except BaseException:
            connection.close()
            raise
        finally:
            if connection.reusable:
                self._idle.append(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _take(self) -> tuple[Connection, bool]:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection, True
        return await self._open(), False

    async def _open(self) -> Connection:
        target = self.target
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(Connection, target.host, target.port, ssl=self._tls)
        except (OSError, TimeoutError) as error:
            raise SpliceError(
                ErrorCode.MISSING_PART,
                f"nothing answers at {target.host}:{target.port} ({str(error) or 'no connection within 10 s'}); "
                "start the server, or give its address with --url",
                param="url",
            ) from None
        return connection
