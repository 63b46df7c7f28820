"""Messages reach the router in order; one that does not read is cut off instead of buffered for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from wire.v1 import worker_pb2
from worker import session as session_module
from worker.session import RouterSession


def frame(step: int) -> worker_pb2.StepFrame:
    return worker_pb2.StepFrame(step=step)


async def test_messages_of_any_thread_come_out_in_order_with_the_incarnation() -> None:
    session = RouterSession("router", 77, asyncio.get_running_loop(), lambda: None)
    sender = threading.Thread(target=lambda: [session.send(frame=frame(step)) for step in range(50)])
    sender.start()
    await asyncio.to_thread(sender.join)
    await asyncio.sleep(0)
    session.close()
    seen = [message async for message in session.messages()]
    assert [message.frame.step for message in seen] == list(range(50))
    assert {message.incarnation for message in seen} == {77}


async def test_nothing_is_sent_after_the_end() -> None:
    session = RouterSession("router", 1, asyncio.get_running_loop(), lambda: None)
    session.close()
    session.send(frame=frame(1))
    await asyncio.sleep(0)
    assert [message async for message in session.messages()] == []


async def test_a_router_that_does_not_read_is_cut_off_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_PENDING_MESSAGES", 3)
    cuts: list[int] = []
    session = RouterSession("router", 1, asyncio.get_running_loop(), lambda: cuts.append(1))
    for step in range(9):
        session.send(frame=frame(step))
    await asyncio.sleep(0)
    assert cuts == [1]
