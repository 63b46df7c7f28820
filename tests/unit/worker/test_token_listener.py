"""Who shows a session's ticket is let in, once; nobody else is, and nobody can keep the others out for long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from worker import token_listener as token_listener_module
from worker.token_listener import TICKET_BYTES, TokenListener


@pytest.fixture
async def listener(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TokenListener]:
    monkeypatch.setattr(token_listener_module, "TICKET_TIMEOUT_S", 0.3)
    made = TokenListener("127.0.0.1")
    made.start()
    yield made
    await made.close()


async def show(listener: TokenListener, ticket: bytes) -> bytes:
    """What the worker says to whoever shows `ticket`; empty when it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(ticket)
    async with asyncio.timeout(10):
        said = await reader.read()
    writer.close()
    return said


def greet(connection: socket.socket) -> None:
    connection.sendall(b"come in")
    connection.close()


async def test_a_ticket_is_good_once(listener: TokenListener) -> None:
    ticket, other = listener.expect(greet), listener.expect(greet)
    assert len(ticket) == len(other) == TICKET_BYTES
    assert ticket != other
    assert await show(listener, ticket) == b"come in"
    assert await show(listener, ticket) == b""
    assert await show(listener, other) == b"come in"


async def test_a_ticket_that_was_forgotten_or_never_given_out_is_refused(listener: TokenListener) -> None:
    ticket = listener.expect(greet)
    listener.forget(ticket)
    assert await show(listener, ticket) == b""
    assert await show(listener, bytes(TICKET_BYTES)) == b""


async def test_strangers_who_say_nothing_are_sent_away_and_others_come_in_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_listener_module, "TICKET_TIMEOUT_S", 0.3)
    monkeypatch.setattr(token_listener_module, "MAX_STRANGERS", 2)
    listener = TokenListener("127.0.0.1")
    listener.start()
    silent = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(3)]
    assert await show(listener, listener.expect(greet)) == b"come in"
    for reader, writer in silent:
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
    await listener.close()


async def test_half_a_ticket_is_none(listener: TokenListener) -> None:
    assert await show(listener, listener.expect(greet)[:5]) == b""
