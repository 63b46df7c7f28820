"""A client that stops reading in the middle of a stream is given up, and its request with it."""

from __future__ import annotations

import asyncio

import pytest

from router.http import exchange as http_exchange
from router.http.exchange import ClientLeft, Exchange


async def _never() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("reads", [0, 3])
async def test_a_write_that_nobody_takes_ends_as_the_client_leaving(
    reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_exchange, "_WRITE_TIMEOUT_S", 0.05)
    taken: list[object] = []

    async def send(message: object) -> None:
        if len(taken) > reads:
            await _never()
        taken.append(message)

    exchange = Exchange({"state": {"request_id": "r"}, "headers": []}, _never, send)  # type: ignore[arg-type]
    await exchange.start_events()
    for _ in range(reads):
        await exchange.send_events([b"x"])
    with pytest.raises(ClientLeft):
        await exchange.send_events([b"x"])
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    exchange.close()


async def test_a_slow_but_reading_client_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_exchange, "_WRITE_TIMEOUT_S", 0.2)

    async def send(message: object) -> None:
        await asyncio.sleep(0.05)

    exchange = Exchange({"state": {"request_id": "r"}, "headers": []}, _never, send)  # type: ignore[arg-type]
    await exchange.start_events()
    for _ in range(8):
        await exchange.send_events([b"x"])
    exchange.close()
