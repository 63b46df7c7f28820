"""One HTTP request and its response on bare ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope, Send

from router.http.errors import error_body, error_headers
from wire.errors import ErrorCode, SpliceError

MAX_JSON_DEPTH = 64
_WRITE_TIMEOUT_S = 60.0
"""A client that reads nothing for this long counts as gone."""
_INLINE_JSON_BYTES = 256 * 1024


class ClientLeft(Exception):
    """The client closed the connection; there is nobody to answer."""


class Exchange:
    """Reads the body once, then watches for the client leaving; sends one response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.request_id: str = scope["state"]["request_id"]
        self.started = False
        """Whether the response's first byte is out: from there on errors travel in the stream."""
        self._receive = receive
        self._send = send
        self._write_began_s: float | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._is_stuck = False

    def header(self, name: bytes) -> bytes | None:
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value)
        return None

    # In ---------------------------------------------------------------------------------------------------------------

    async def read_json(self, max_bytes: int, timeout_s: float) -> dict[str, Any]:
        """The body as an object. Raises invalid_request or request_too_large; ClientLeft when it never ends."""
        try:
            async with asyncio.timeout(timeout_s):
                raw = await self._read_body(max_bytes)
        except TimeoutError:
            raise SpliceError(
                ErrorCode.INVALID_REQUEST, f"the body did not arrive within {timeout_s:g} s; send it whole"
            ) from None
        if len(raw) > _INLINE_JSON_BYTES:
            return await asyncio.to_thread(parse_object, raw)
        return parse_object(raw)

    async def _read_body(self, max_bytes: int) -> bytes:
        declared = self.header(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > max_bytes:
            raise _too_large(max_bytes)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def watch_client(self, on_left: Callable[[], None]) -> asyncio.Task[None]:
        """Calls `on_left` when the client disconnects; cancel the task when the response is out."""

        async def watch() -> None:
            message: Message = {}
            while message.get("type") != "http.disconnect":
                message = await self._receive()
            on_left()

        return asyncio.create_task(watch(), name=f"client of {self.request_id}")

    # Out --------------------------------------------------------------------------------------------------------------

    async def send_bytes(
        self, status: int, body: bytes, content_type: bytes, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        await self._start(status, content_type, [(b"content-length", str(len(body)).encode()), *(headers or [])])
        await self._write({"type": "http.response.body", "body": body})

    async def send_json(self, value: Any, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        await self.send_bytes(status, msgspec.json.encode(value), b"application/json", headers)

    async def send_error(self, error: SpliceError) -> None:
        await self.send_bytes(
            error.error_class.http_status, error_body(error), b"application/json", error_headers(error)
        )

    async def start_events(self) -> None:
        await self._start(200, b"text/event-stream; charset=utf-8", [(b"cache-control", b"no-cache")])
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._watch_writes(task)

    async def send_events(self, payloads: list[bytes], *, last: bool = False) -> None:
        """Server-sent events, all in one write."""
        body = b"data: " + b"\n\ndata: ".join(payloads) + b"\n\n"
        self._write_began_s = asyncio.get_running_loop().time()
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_stuck and task is not None:
                task.uncancel()  # the cancellation ends here
                raise ClientLeft from None
            raise
        finally:
            self._write_began_s = None

    def close(self) -> None:
        """The response is over, whole or not."""
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _watch_writes(self, task: asyncio.Task[Any]) -> None:
        """Looks now and then whether an event is stuck: a timer for each of them would cost as much as the write."""
        loop = asyncio.get_running_loop()
        if self._write_began_s is not None and loop.time() - self._write_began_s > _WRITE_TIMEOUT_S:
            self._is_stuck = True
            task.cancel()
            return
        self._watchdog = loop.call_later(_WRITE_TIMEOUT_S / 4, self._watch_writes, task)

    async def _write(self, message: Message) -> None:
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await self._send(message)
        except TimeoutError:
            raise ClientLeft from None

    async def _start(self, status: int, content_type: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *headers]}
        )


def parse_object(raw: bytes) -> dict[str, Any]:
    """Strict JSON (UTF-8, no NaN, bounded nesting) holding one object."""
    if not raw.strip():
        raise SpliceError(ErrorCode.INVALID_REQUEST, "the body is empty; send a JSON object")
    try:
        raw.decode("utf-8")
        value = msgspec.json.decode(raw)
    except UnicodeDecodeError as error:
        raise SpliceError(
            ErrorCode.INVALID_REQUEST, f"the body is not UTF-8 (byte {error.start}); send JSON in UTF-8"
        ) from None
    except (msgspec.DecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SpliceError(ErrorCode.INVALID_REQUEST, f"the body is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise SpliceError(ErrorCode.INVALID_REQUEST, "the body must be a JSON object")
    _check_values(value)
    return value


def _check_values(root: dict[str, Any]) -> None:
    """Bounded depth, and no text that cannot be written as UTF-8 (a lone surrogate escape)."""
    layer: list[Any] = [root]
    for _ in range(MAX_JSON_DEPTH):
        below: list[Any] = []
        for value in layer:
            children = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            for child in children:
                if isinstance(child, dict | list):
                    below.append(child)
                elif isinstance(child, str) and not child.isascii():
                    try:
                        child.encode()
                    except UnicodeEncodeError:
                        raise SpliceError(
                            ErrorCode.INVALID_REQUEST, "the body holds half of a surrogate pair; send whole characters"
                        ) from None
        if not below:
            return
        layer = below
    raise SpliceError(ErrorCode.INVALID_REQUEST, f"the body is nested deeper than {MAX_JSON_DEPTH} levels")


def _too_large(max_bytes: int) -> SpliceError:
    return SpliceError(ErrorCode.REQUEST_TOO_LARGE, f"the body exceeds {max_bytes} bytes; send less text")
