"""A small real HTTP server for the client's tests: it writes the bytes it is told, cut where it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BREAK = b""
"""As a piece: the server closes the connection here."""
Piece = bytes | float
"""Bytes to write at once, or seconds to wait."""
Reply = Callable[[dict[str, object]], Sequence[Piece]]


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text(word: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": word, "finish_reason": finish}]})


def usage(prompt: int, output: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}})


DONE = b"data: [DONE]\n\n"


def chunked(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


END = b"0\r\n\r\n"


def plain(status: str, body: bytes) -> list[Piece]:
    return [f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body]


@dataclass
class SseServer:
    """Answers GET with a list of one model and POST with what `reply` makes of the request's body."""

    reply: Reply
    port: int = 0
    connections: int = 0
    bodies: list[dict[str, object]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    _ready: threading.Event = field(default_factory=threading.Event)
    _stop: asyncio.Event | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[SseServer]:
        thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        thread.start()
        assert self._ready.wait(10)
        try:
            yield self
        finally:
            assert self._loop is not None
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(10)

    async def _serve(self) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(self._talk, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await self._stop.wait()
            server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split("\r\n", 1)[0].split(" ")
                if method == "GET":
                    pieces = plain("200 OK", b'{"data": [{"id": "tiny"}]}')
                else:
                    length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                    body = json.loads(await reader.readexactly(length))
                    self.bodies.append(body)
                    self.paths.append(path)
                    pieces = list(self.reply(body))
                if not await _write(writer, pieces):
                    break
        writer.close()


async def _write(writer: asyncio.StreamWriter, pieces: Sequence[Piece]) -> bool:
    for piece in pieces:
        if piece == BREAK:
            return False
        if isinstance(piece, float):
            await asyncio.sleep(piece)
        else:
            writer.write(piece)
            await writer.drain()
    return True


def answer(tokens: int, *, prompt: int = 3) -> list[Piece]:
    """A whole streamed answer: one event per token, each in a chunk of its own."""
    words = [text(f"w{i}", "length" if i == tokens - 1 else None) for i in range(tokens)]
    return [HEAD, *(chunked(word) for word in words), chunked(usage(prompt, tokens)), chunked(DONE) + END]
