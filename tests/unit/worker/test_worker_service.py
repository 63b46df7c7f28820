"""A router's stream: what comes over it ends with it, and no router can hold a worker up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from role_bench import RoleBench, submit

from decode_worker.role import DecodeRole
from engine.tuning.tactic_counts import TacticCounts
from wire.convert import sampling_to_proto
from wire.framing import FrameReader
from wire.sampling import SamplingParams
from wire.v1 import worker_pb2, worker_pb2_grpc
from worker import service as service_module
from worker import session as session_module
from worker.engine_loop import EngineLoop
from worker.service import WorkerService
from worker.token_listener import TokenListener

LONG = sampling_to_proto(SamplingParams(max_tokens=450, temperature=0.0, ignore_eos=True))


@dataclass
class Served:
    role: DecodeRole
    loop: EngineLoop
    stub: Any
    deaths: list[BaseException]

    async def session(self, incarnation: int = 7) -> Any:
        """A stream that was welcomed."""
        call, _ = await self.welcomed(incarnation)
        return call

    async def welcomed(self, incarnation: int = 7) -> tuple[Any, worker_pb2.WorkerWelcome]:
        call = self.stub.Session()
        hello = worker_pb2.RouterHello(router_id="r", router_incarnation=1, worker_incarnation=incarnation)
        await call.write(worker_pb2.RouterMessage(hello=hello))
        first = await call.read()
        assert first.HasField("welcome")
        return call, first.welcome

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the engine's thread knows no event of this loop
                await asyncio.sleep(0.01)


@pytest.fixture
async def served(tiny: Path) -> AsyncIterator[Served]:
    """A worker's gRPC face over a role whose engine runs on a thread of its own."""
    bench, deaths = RoleBench(tiny, DecodeRole), []
    loop = EngineLoop(bench.engine, deaths.append)
    bench.post = loop.post
    await bench.role.start()
    server = grpc.aio.server()
    listener = TokenListener("127.0.0.1")
    listener.start()
    service = WorkerService(bench.role, loop, listener, bench.record(), bench.card)
    worker_pb2_grpc.add_WorkerServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop.start(bench.role)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(bench.role, loop, worker_pb2_grpc.WorkerStub(channel), deaths)
    await server.stop(0)
    await listener.close()
    assert loop.stop(5.0)
    await bench.role.close()
    assert not deaths


async def test_ending_the_stream_cancels_what_came_over_it_and_nothing_else(served: Served) -> None:
    mine, other = await served.session(), await served.session()
    await mine.write(worker_pb2.RouterMessage(generate=submit(1, sampling=LONG)))
    await other.write(worker_pb2.RouterMessage(generate=submit(2, sampling=LONG)))
    await served.until(lambda: len(served.role.table) == 2)
    mine.cancel()
    await served.until(lambda: served.role.table.get((1, 1)) is None)
    tokens = 0
    while tokens < 450:
        message = await other.read()
        tokens += len(message.frame.tokens)
    other.cancel()
    await served.until(lambda: not len(served.role.table))


async def test_a_router_that_reads_nothing_loses_its_stream_and_its_requests(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_PENDING_MESSAGES", 20)
    deaf = await served.session()
    await deaf.write(worker_pb2.RouterMessage(reserve=submit()))
    await served.until(lambda: served.role.table.get((1, 1)) is not None)
    tracked = served.role.table.get((1, 1))
    assert tracked is not None
    for _ in range(60):
        tracked.session.send(failed=worker_pb2.RequestFailed(request=99, attempt=1, message="x" * (1 << 20)))
    await served.until(lambda: not len(served.role.table))
    deaf.cancel()


async def test_a_question_nobody_waits_for_any_more_does_not_end_the_worker(served: Served) -> None:
    busy, answered = threading.Event(), []
    served.loop.post(lambda: busy.wait(10) and None)
    asking = asyncio.create_task(served.loop.call(lambda: answered.append(1), 10))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    busy.set()
    assert await served.loop.call(lambda: "still here", 10) == "still here"
    assert not answered


async def test_a_caller_without_a_hello_is_sent_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "HELLO_TIMEOUT_S", 0.05)
    call = served.stub.Session(timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_hello_meant_for_another_incarnation_is_refused(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.session(incarnation=8)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_messages_that_make_no_sense_are_refused_and_the_worker_goes_on(served: Served) -> None:
    call = await served.session()
    for message in (
        worker_pb2.RouterMessage(),
        worker_pb2.RouterMessage(prefill=submit(1)),
        worker_pb2.RouterMessage(generate=submit(2, tokens=[1 << 31])),
        worker_pb2.RouterMessage(reserve=submit(3, num_prompt_tokens=0)),
        worker_pb2.RouterMessage(attach=worker_pb2.Attach(request=4, attempt=1)),
        worker_pb2.RouterMessage(cancel=worker_pb2.Cancel(request=5, attempt=1)),
    ):
        await call.write(message)
    refused = set()
    while len(refused) < 3:
        message = await call.read()
        if message.HasField("failed"):
            refused.add((message.failed.request, message.failed.code))
    assert refused == {(1, "invalid_request"), (2, "invalid_request"), (3, "invalid_request")}
    await call.write(worker_pb2.RouterMessage(generate=submit(6)))
    tokens = 0
    while tokens < 8:
        tokens += len((await call.read()).frame.tokens)
    call.cancel()


async def test_a_drain_waits_for_the_running_work_and_counts_what_is_left(served: Served) -> None:
    call = await served.session()
    await call.write(worker_pb2.RouterMessage(reserve=submit()))
    await served.until(lambda: len(served.role.table) == 1)
    reply = await served.stub.Drain(worker_pb2.DrainRequest(timeout_s=0.05), timeout=5)
    assert (reply.drained, reply.unfinished) == (False, 1)
    await call.write(worker_pb2.RouterMessage(cancel=worker_pb2.Cancel(request=1, attempt=1)))
    reply = await served.stub.Drain(worker_pb2.DrainRequest(timeout_s=5), timeout=10)
    assert (reply.drained, reply.unfinished) == (True, 0)
    call.cancel()


class Joined:
    """The router's end of a token stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._frames = FrameReader()

    @classmethod
    async def join(cls, welcome: worker_pb2.WorkerWelcome) -> Joined:
        joined = cls(*await asyncio.open_connection("127.0.0.1", welcome.token_port))
        joined._writer.write(welcome.token_ticket)
        return joined

    async def some(self) -> list[worker_pb2.WorkerMessage]:
        """What comes next; nothing at the end."""
        async with asyncio.timeout(10):
            while data := await self._reader.read(1 << 16):
                if messages := self._frames.feed(data):
                    return [worker_pb2.WorkerMessage.FromString(message) for message in messages]
        return []

    def leave(self) -> None:
        self._writer.close()


async def test_a_router_that_joins_hears_everything_over_its_token_stream_in_order(served: Served) -> None:
    call, welcome = await served.welcomed()
    joined = await Joined.join(welcome)
    heard = await joined.some()
    assert heard[0].HasField("welcome")
    await call.write(worker_pb2.RouterMessage(generate=submit(1)))
    await call.write(worker_pb2.RouterMessage(prefill=submit(2)))
    while not any(message.HasField("failed") for message in heard) or sum(map(_num_tokens, heard)) < 8:
        heard += await joined.some()
    frames = [message.frame for message in heard if message.HasField("frame")]
    assert [frame.seq[0] for frame in frames] == list(range(8))
    assert {message.incarnation for message in heard} == {7}
    call.cancel()
    while await joined.some():
        """The session and its token stream end together."""


async def test_a_router_that_leaves_its_token_stream_loses_its_requests(served: Served) -> None:
    call, welcome = await served.welcomed()
    joined = await Joined.join(welcome)
    await joined.some()
    await call.write(worker_pb2.RouterMessage(generate=submit(1, sampling=LONG)))
    await served.until(lambda: len(served.role.table) == 1)
    joined.leave()
    await served.until(lambda: not len(served.role.table))
    async with asyncio.timeout(10):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                """Heartbeats from before it joined."""
        await call.code()


async def test_who_has_spoken_already_cannot_join_any_more(served: Served) -> None:
    call, welcome = await served.welcomed()
    await call.write(worker_pb2.RouterMessage(generate=submit(1)))
    tokens = 0
    while not tokens:  # a heartbeat may come first, and says nothing of whether the request was heard
        tokens += _num_tokens(await call.read())
    joined = await Joined.join(welcome)
    assert await joined.some() == []
    while tokens < 8:
        tokens += _num_tokens(await call.read())
    call.cancel()


def _num_tokens(message: worker_pb2.WorkerMessage) -> int:
    return len(message.frame.tokens)


async def test_stats_and_heartbeats_tell_what_was_copied_and_swapped_and_how_long_steps_take(served: Served) -> None:
    call = await served.session()
    await call.write(worker_pb2.RouterMessage(generate=submit(1, sampling=LONG)))
    await served.until(lambda: served.role.engine.stats.steps > 2)
    totals = served.role.engine.stats
    totals.preemptions, totals.copied_blocks, totals.swapped_out_blocks, totals.swapped_in_blocks = 7, 4, 3, 2
    stats = await served.stub.GetStats(worker_pb2.GetStatsRequest())
    assert (stats.copied_blocks, stats.swapped_out_blocks, stats.swapped_in_blocks) == (4, 3, 2)
    assert 0 < stats.longest_step_s <= totals.longest_step_s
    async with asyncio.timeout(10):
        while True:
            beat = (await call.read()).heartbeat
            if beat.preemptions == 7:
                break
    assert (beat.swapped_out_blocks, beat.swapped_in_blocks, beat.hung) == (3, 2, False)
    call.cancel()


async def test_stats_and_heartbeats_tell_of_tactics_where_there_are_any(served: Served) -> None:
    assert not (await served.stub.GetStats(worker_pb2.GetStatsRequest())).HasField("tactics")
    served.role.tactic_counts = lambda: TacticCounts(hits=5, misses=3, skipped=1)
    stats = await served.stub.GetStats(worker_pb2.GetStatsRequest())
    assert (stats.tactics.hits, stats.tactics.misses, stats.tactics.skipped) == (5, 3, 1)
    call = await served.session()
    async with asyncio.timeout(10):
        while not (beat := (await call.read()).heartbeat).HasField("tactics"):
            pass
    assert beat.tactics == stats.tactics
    call.cancel()


async def test_an_engine_thread_that_stands_still_is_told_of_in_heartbeats_until_it_goes_on(served: Served) -> None:
    call, thaw = await served.session(), threading.Event()

    async def read_until(hung: bool) -> None:
        while (await call.read()).heartbeat.hung is not hung:
            pass

    served.loop.post(lambda: thaw.wait(60))  # type: ignore[arg-type, return-value]
    try:
        async with asyncio.timeout(20):
            await read_until(True)
            thaw.set()
            await read_until(False)
    finally:
        thaw.set()
    call.cancel()
