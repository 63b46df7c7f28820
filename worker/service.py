"""The worker's gRPC face towards routers: one stream per router, and a few questions."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial

import grpc
import grpc.aio
import psutil
import structlog

from engine.scheduling.request import RequestKind
from wire.model_card import ModelCard
from wire.v1 import worker_pb2, worker_pb2_grpc
from wire.worker_record import WorkerRecord
from worker.engine_loop import EngineLoop
from worker.role import Role
from worker.session import RouterSession
from worker.token_listener import TokenListener

HEARTBEAT_S = 0.1
HELLO_TIMEOUT_S = 5.0
STATS_TIMEOUT_S = 5.0
MAX_LISTED_REQUESTS = 256

log = structlog.get_logger()


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """Translates between routers and the role; decides nothing."""

    def __init__(
        self, role: Role, loop: EngineLoop, listener: TokenListener, record: WorkerRecord, card: ModelCard
    ) -> None:
        self._role = role
        self._listener = listener
        self._loop = loop
        self._record = record
        self._card = worker_pb2.ModelCardReply(card_id=card.card_id, card=card.encode())
        self._drain_requested = asyncio.Event()

    @property
    def drain_requested(self) -> asyncio.Event:
        """Set once this worker has been told to take no new work."""
        return self._drain_requested

    async def Session(
        self,
        request_iterator: AsyncIterator[worker_pb2.RouterMessage],
        context: grpc.aio.ServicerContext[worker_pb2.RouterMessage, worker_pb2.WorkerMessage],
    ) -> AsyncIterator[worker_pb2.WorkerMessage]:
        hello = await self._hello(request_iterator, context)
        stream = asyncio.current_task()
        assert stream is not None  # noqa: S101 (a handler runs in the task of its call)
        session = RouterSession(hello.router_id, self._record.incarnation, asyncio.get_running_loop(), stream.cancel)
        ticket = self._listener.expect(partial(self._join, session))
        session.send(welcome=self._welcome(token_port=self._listener.port, token_ticket=ticket))
        tasks = (
            asyncio.create_task(self._read(request_iterator, session, ticket)),
            asyncio.create_task(self._beat(session)),
        )
        try:
            async for message in session.messages():
                yield message
        finally:
            for task in tasks:
                task.cancel()
            self._listener.forget(ticket)
            session.close()
            self._loop.post(lambda: self._role.session_lost(session))

    async def GetModelCard(
        self,
        request: worker_pb2.GetModelCardRequest,
        context: grpc.aio.ServicerContext[worker_pb2.GetModelCardRequest, worker_pb2.ModelCardReply],
    ) -> worker_pb2.ModelCardReply:
        return self._card

    async def Drain(
        self,
        request: worker_pb2.DrainRequest,
        context: grpc.aio.ServicerContext[worker_pb2.DrainRequest, worker_pb2.DrainReply],
    ) -> worker_pb2.DrainReply:
        unfinished = await self.drain(request.timeout_s)
        return worker_pb2.DrainReply(drained=unfinished == 0, unfinished=unfinished)

    async def GetStats(
        self,
        request: worker_pb2.GetStatsRequest,
        context: grpc.aio.ServicerContext[worker_pb2.GetStatsRequest, worker_pb2.WorkerStats],
    ) -> worker_pb2.WorkerStats:
        return await self._loop.call(self._stats, STATS_TIMEOUT_S)

    async def drain(self, timeout_s: float) -> int:
        """Refuses new work, waits up to `timeout_s` for the running work; returns how many requests are left."""
        self._drain_requested.set()
        idle: Future[None] = Future()
        self._loop.post(partial(self._role.drain, idle))
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wrap_future(idle)
        except TimeoutError:
            log.warning("drain_timed_out", timeout_s=timeout_s)
        return len(self._role.table)

    async def _hello(
        self,
        messages: AsyncIterator[worker_pb2.RouterMessage],
        context: grpc.aio.ServicerContext[worker_pb2.RouterMessage, worker_pb2.WorkerMessage],
    ) -> worker_pb2.RouterHello:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(aiter(messages), None)
        except TimeoutError:
            first = None
        if first is None or first.WhichOneof("body") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a session must be `hello`")
        assert first is not None  # noqa: S101 (abort raises; this only tells the type checker)
        if first.hello.worker_incarnation != self._record.incarnation:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"worker_incarnation {first.hello.worker_incarnation:016x} is not mine: this address now belongs to "
                f"{self._record.worker_id} ({self._record.incarnation:016x}); look it up again",
            )
        return first.hello

    def _welcome(self, token_port: int = 0, token_ticket: bytes = b"") -> worker_pb2.WorkerWelcome:
        record = self._record
        return worker_pb2.WorkerWelcome(
            worker_id=record.worker_id, role=record.role, token_port=token_port, token_ticket=token_ticket
        )

    def _join(self, session: RouterSession, connection: socket.socket) -> None:
        session.join(connection)
        session.send(welcome=self._welcome())

    async def _read(
        self, messages: AsyncIterator[worker_pb2.RouterMessage], session: RouterSession, ticket: bytes
    ) -> None:
        try:
            async for message in messages:
                self._listener.forget(ticket)  # what answers this message must not be divided between two streams
                self._receive(message, session)
        finally:
            session.close()

    def _receive(self, message: worker_pb2.RouterMessage, session: RouterSession) -> None:
        role = self._role
        command: Callable[[], None]
        match message.WhichOneof("body"):
            case "reserve":
                command = partial(role.submit, RequestKind.RESERVE, message.reserve, session)
            case "prefill":
                command = partial(role.submit, RequestKind.PREFILL, message.prefill, session)
            case "generate":
                command = partial(role.submit, RequestKind.GENERATE, message.generate, session)
            case "attach":
                command = partial(role.attach, message.attach, session)
            case "cancel":
                command = partial(role.cancel, (message.cancel.request, message.cancel.attempt))
            case unknown:
                log.warning("router_message_ignored", body=unknown, router=session.router_id)
                return
        self._loop.post(command)

    async def _beat(self, session: RouterSession) -> None:
        while True:
            session.send(heartbeat=self._heartbeat())
            await asyncio.sleep(HEARTBEAT_S)

    def _heartbeat(self) -> worker_pb2.Heartbeat:
        load, totals = self._role.load, self._role.engine.stats
        return worker_pb2.Heartbeat(
            progress=self._loop.turns,
            busy=self._loop.busy or load.running + load.waiting > 0,
            hung=self._loop.is_hung(),
            expected_step_s=self._loop.expected_step_s,
            running=load.running,
            waiting=load.waiting + load.reserved,
            free_blocks=load.free_blocks,
            queued_prefill_tokens=load.queued_prefill_tokens,
            draining=self._role.draining,
            preemptions=totals.preemptions,
            swapped_out_blocks=totals.swapped_out_blocks,
            swapped_in_blocks=totals.swapped_in_blocks,
            tactics=self._tactics(),
        )

    def _tactics(self) -> worker_pb2.TacticCounts | None:
        if self._role.tactic_counts is None:
            return None
        counts = self._role.tactic_counts()
        return worker_pb2.TacticCounts(hits=counts.hits, misses=counts.misses, skipped=counts.skipped)

    def _stats(self) -> worker_pb2.WorkerStats:
        engine, counters = self._role.engine, self._role.handoff_counters()
        load, totals = engine.load(), engine.stats
        return worker_pb2.WorkerStats(
            worker_id=self._record.worker_id,
            incarnation=self._record.incarnation,
            role=self._record.role,
            model=self._record.model,
            pid=os.getpid(),
            steps=totals.steps,
            running=load.running,
            waiting=load.waiting + load.reserved,
            num_blocks=self._record.num_blocks,
            free_blocks=load.free_blocks,
            held_blocks=load.held_blocks,
            draining_blocks=load.draining_blocks,
            max_batch_rows=totals.max_batch_rows,
            prompt_tokens=totals.prompt_tokens,
            generated_tokens=totals.generated_tokens,
            prefix_hit_tokens=totals.prefix_hit_tokens,
            preemptions=totals.preemptions,
            copied_blocks=totals.copied_blocks,
            swapped_out_blocks=totals.swapped_out_blocks,
            swapped_in_blocks=totals.swapped_in_blocks,
            longest_step_s=totals.longest_step_s,
            tactics=self._tactics(),
            kv_bytes_in=counters.kv_bytes_in,
            kv_blocks_in=counters.kv_blocks_in,
            digest_mismatches=counters.digest_mismatches,
            transport_fallbacks=counters.transport_fallbacks,
            leases_active=counters.leases_active,
            leases_expired=counters.leases_expired,
            kv_blocks_pushed=counters.kv_blocks_pushed,
            rss_bytes=psutil.Process().memory_info().rss,
            draining=self._role.draining,
            requests=[
                worker_pb2.RunningRequest(
                    request=request.key[0],
                    attempt=request.key[1],
                    state=request.status.name.lower(),
                    num_tokens=request.num_tokens,
                    num_computed_tokens=request.num_computed_tokens,
                )
                for request in engine.requests(MAX_LISTED_REQUESTS)
            ],
        )
