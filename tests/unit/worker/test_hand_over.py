"""Both roles and a real hand-off between them: the router is told of every end it has not caused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from role_bench import RoleBench, submit

from decode_worker.role import DecodeRole
from engine.scheduling.request import RequestKind
from prefill_worker.role import PrefillRole
from wire.convert import sampling_to_proto
from wire.sampling import SamplingParams
from wire.v1 import worker_pb2


@dataclass
class Pair:
    prefill: RoleBench[PrefillRole]
    decode: RoleBench[DecodeRole]
    endpoint: str

    async def turn_until(self, condition: Callable[[], object], *, prefill: bool = True) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)
                self.decode.turn()
                if prefill:
                    self.prefill.turn()

    async def both_empty(self) -> None:
        await self.turn_until(lambda: self.prefill.is_empty and self.decode.is_empty)

    async def check_answer_is_that_of_decode_alone(self) -> None:
        self.decode.role.submit(RequestKind.GENERATE, submit(9, tokens=list(submit(1).tokens)), self.decode.session)
        await self.turn_until(lambda: len(self.decode.session.tokens) == 8)
        alone = self.decode.session.tokens
        assert len(set(alone)) > 3
        self.begin(submit(1))
        await self.turn_until(lambda: len(self.decode.session.tokens) == 15)
        assert self.prefill.session.tokens + self.decode.session.tokens[8:] == alone
        await self.both_empty()

    def begin(self, message: worker_pb2.Submit) -> None:
        """What a router does first: reserve, prefill, attach."""
        self.prefill.role.submit(RequestKind.PREFILL, message, self.prefill.session)
        self.begin_at_decode(message)

    def begin_at_decode(self, message: worker_pb2.Submit) -> None:
        self.decode.role.submit(RequestKind.RESERVE, message, self.decode.session)
        self.decode.turn()
        attach = worker_pb2.Attach(
            request=message.request,
            attempt=message.attempt,
            source_worker="prefill",
            source_incarnation=7,
            source_endpoint=self.endpoint,
        )
        self.decode.role.attach(attach, self.decode.session)


@pytest.fixture
async def pair(tiny: Path) -> AsyncIterator[Pair]:
    async with joined(RoleBench(tiny, PrefillRole), RoleBench(tiny, DecodeRole)) as both:
        yield both


@asynccontextmanager
async def joined(prefill: RoleBench[PrefillRole], decode: RoleBench[DecodeRole]) -> AsyncIterator[Pair]:
    server = grpc.aio.server()
    prefill.role.add_to_server(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await prefill.role.start()
    await decode.role.start()
    await server.start()
    yield Pair(prefill, decode, f"127.0.0.1:{port}")
    await decode.role.close()
    await server.stop(0)
    await prefill.role.close()


async def test_the_answer_is_that_of_decode_alone(pair: Pair) -> None:
    pair.decode.role.submit(RequestKind.GENERATE, submit(9, tokens=list(submit(1).tokens)), pair.decode.session)
    await pair.turn_until(lambda: len(pair.decode.session.tokens) == 8)
    alone = pair.decode.session.tokens
    pair.begin(submit(1, length=40))
    await pair.turn_until(lambda: len(pair.decode.session.tokens) == 15)
    assert pair.prefill.session.tokens + pair.decode.session.tokens[8:] == alone
    await pair.both_empty()


async def test_many_at_once_leave_nothing(pair: Pair) -> None:
    for number in range(1, 13):
        pair.begin(submit(number, length=20 + 30 * number))
        if number % 3 == 0:
            pair.prefill.role.cancel((number, 1))
            pair.decode.role.cancel((number, 1))
    await pair.both_empty()
    assert len(pair.prefill.session.tokens) >= 8
    assert len(pair.decode.session.tokens) == 8 * 7


@pytest.mark.parametrize("computed", [False, True])
async def test_decode_tells_its_router_when_the_source_gives_up(computed: bool, pair: Pair) -> None:
    pair.begin(submit())
    if computed:
        pair.prefill.turn(2)
        assert pair.prefill.engine.load().held_blocks
    else:
        await pair.turn_until(lambda: pair.prefill.role.handoff_counters().leases_active, prefill=False)
    pair.prefill.role.session_lost(pair.prefill.session)
    await pair.both_empty()
    [failed] = pair.decode.session.of("failed")
    assert (failed.request, failed.code, failed.retryable) == (1, "kv_transfer_failed", True)


async def test_an_answer_of_one_token_troubles_nobody(pair: Pair) -> None:
    pair.begin(submit(sampling=sampling_to_proto(SamplingParams(max_tokens=1, temperature=0.0))))
    await pair.both_empty()
    assert len(pair.prefill.session.tokens) == 1
    assert not pair.decode.session.codes
    assert not pair.decode.session.tokens
