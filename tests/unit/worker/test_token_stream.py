"""A router's token stream: in order whoever writes, never waited for, cut when its router leaves or does not read."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from wire.framing import FrameReader
from worker import token_stream as token_stream_module
from worker.token_stream import TokenStream

BIG = 1 << 16


@dataclass
class Pair:
    stream: TokenStream
    router: socket.socket
    cuts: list[int] = field(default_factory=list)

    async def read(self, count: int) -> list[bytes]:
        loop, reader, messages = asyncio.get_running_loop(), FrameReader(), list[bytes]()
        async with asyncio.timeout(20):
            while len(messages) < count:
                data = await loop.sock_recv(self.router, 1 << 16)
                assert data, "it ended"
                messages += reader.feed(data)
        return messages

    async def until_cut(self) -> None:
        async with asyncio.timeout(10):
            while not self.cuts:  # noqa: ASYNC110 - the test's way to hear of it is the list
                await asyncio.sleep(0.001)


@pytest.fixture
async def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        router = socket.create_connection(listener.getsockname())
        worker, _ = listener.accept()
    router.setblocking(False)
    cuts: list[int] = []
    made = Pair(TokenStream(worker, asyncio.get_running_loop(), lambda: cuts.append(1)), router, cuts)
    yield made
    made.stream.close()
    router.close()


def numbered(number: int, size: int = BIG) -> bytes:
    return number.to_bytes(4, "little") * (size // 4)


async def test_a_message_is_on_its_way_before_the_event_loop_turns(pair: Pair) -> None:
    pair.stream.write(b"at once")
    ready = await asyncio.to_thread(_is_readable, pair.router)
    assert ready
    assert await pair.read(1) == [b"at once"]


def _is_readable(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 10)[0])


async def test_more_than_the_socket_takes_waits_and_comes_in_order(pair: Pair) -> None:
    writer = threading.Thread(target=lambda: [pair.stream.write(numbered(number)) for number in range(300)])
    writer.start()
    await asyncio.to_thread(writer.join)
    messages = await pair.read(300)
    assert messages == [numbered(number) for number in range(300)]
    assert pair.cuts == []


async def test_threads_that_write_at_once_do_not_mix_their_messages(pair: Pair) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 200):
            pair.stream.write(numbered(number, 4096))

    threads = [threading.Thread(target=write, args=(1000 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    messages = await pair.read(800)
    for thread in threads:
        thread.join()
    numbers = [int.from_bytes(message[:4], "little") for message in messages]
    assert all(message == numbered(number, 4096) for message, number in zip(messages, numbers, strict=True))
    for first in range(0, 4000, 1000):
        assert [number for number in numbers if number // 1000 * 1000 == first] == list(range(first, first + 200))


async def test_a_router_that_does_not_read_is_cut_off_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_stream_module, "MAX_PENDING_MESSAGES", 20)
    for number in range(400):
        pair.stream.write(numbered(number))
    await pair.until_cut()
    await asyncio.sleep(0.01)
    assert pair.cuts == [1]


async def test_a_router_that_leaves_is_noticed_without_a_word_to_it(pair: Pair) -> None:
    pair.router.close()
    await pair.until_cut()
    pair.stream.write(b"to nobody")
    await asyncio.sleep(0.01)
    assert pair.cuts == [1]


async def test_what_was_written_arrives_although_the_stream_is_closed_at_once(pair: Pair) -> None:
    pair.stream.write(b"the last")
    pair.stream.close()
    pair.stream.write(b"too late")
    assert await pair.read(1) == [b"the last"]
    assert await asyncio.get_running_loop().sock_recv(pair.router, 1) == b""
    assert pair.cuts == []
