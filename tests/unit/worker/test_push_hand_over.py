"""Prefill that stores KV in decode's memory as it computes it: the same answers, and memory that is never reused too
early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from device_role_bench import SPECS, DeviceRoleBench
from role_bench import RoleBench, submit
from test_hand_over import Pair, joined

from decode_worker.role import DecodeRole
from engine.scheduling.request import RequestKind
from prefill_worker.role import PrefillRole
from wire.convert import sampling_to_proto
from wire.errors import SpliceError
from wire.sampling import SamplingParams
from wire.v1 import worker_pb2

TOKENS = 3
"""Of each answer."""


def brief(number: int, length: int, prefix: Sequence[int] = ()) -> worker_pb2.Submit:
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    tokens = [*prefix, *submit(number, length=length - len(prefix)).tokens]
    return submit(number, tokens=tokens, num_prompt_tokens=length, sampling=sampling_to_proto(sampling))


@dataclass
class PushPair(Pair):
    """Both workers on devices of one host."""

    async def mapped(self) -> None:
        """The source may push what was begun from now on."""
        pusher = self.prefill.role._source._pusher
        await self.turn_until(lambda: len(pusher) and all(pusher._links.values()), prefill=False)

    async def chosen(self) -> bool:
        """Whether the one request is to be pushed."""
        [fetch] = self.decode.role._consumer._fetches.values()
        await self.turn_until(lambda: fetch.wants_push is not None, prefill=False)
        return bool(fetch.wants_push)

    async def alone(self, message: worker_pb2.Submit) -> list[int]:
        """What decode answers by itself; nothing it computes for that is found in a cache."""
        number = message.request + 1000
        apart = worker_pb2.Submit()
        apart.CopyFrom(message)
        apart.request, apart.cache_salt = number, b"apart"
        self.decode.role.submit(RequestKind.GENERATE, apart, self.decode.session)
        await self.turn_until(lambda: len(self.answer(number)) == TOKENS)
        return self.answer(number)

    def answer(self, request: int) -> list[int]:
        """Its tokens so far, of either worker."""
        found: list[int] = []
        for bench in (self.prefill, self.decode):
            for frame in bench.session.of("frame"):
                tokens = iter(frame.tokens)
                for key, count in zip(frame.request, frame.num_tokens, strict=True):
                    row = [next(tokens) for _ in range(count)]
                    found += row if key == request else []
        return found

    @property
    def is_pushing(self) -> bool:
        """Something granted may still be written to."""
        return len(self.prefill.role._source._pusher) > 0

    async def handed_over(self, message: worker_pb2.Submit) -> worker_pb2.HandoffReport:
        """How its KV came; the answer is that of decode alone."""
        await self.turn_until(lambda: len(self.answer(message.request)) == TOKENS)
        await self.both_empty()
        assert self.answer(message.request) == await self.alone(message)
        [report] = [one for one in self.decode.session.of("handoff") if one.request == message.request]
        return report


@asynccontextmanager
async def pushing(mode: str = "on", spec: str = "keys_and_values") -> AsyncIterator[PushPair]:
    benches = [DeviceRoleBench(kind, SPECS[spec], kv_push=mode) for kind in (PrefillRole, DecodeRole)]
    async with joined(*benches) as both:
        yield PushPair(both.prefill, both.decode, both.endpoint)
    for bench in benches:
        bench.memory.close()
        bench.device.check()


@pytest.mark.parametrize("spec", SPECS)
async def test_a_pushed_prompt_is_there_whole_its_tail_too_and_nothing_is_pulled(spec: str) -> None:
    async with pushing(spec=spec) as pair:
        pulls: list[object] = []
        pair.decode.memory.pull = lambda *blocks: pulls.append(blocks)
        prompt = brief(1, 150)
        pair.begin(prompt)
        await pair.mapped()
        report = await pair.handed_over(prompt)
        assert (report.transport, report.kv_blocks, report.blocks_pushed) == ("push", 5, 5)
        assert not pulls
        assert pair.decode.role.handoff_counters().kv_blocks_pushed == 5


async def test_what_was_in_the_prefix_cache_is_pulled_and_the_rest_is_pushed() -> None:
    async with pushing() as pair:
        known = brief(1, 70)
        pair.prefill.role.submit(RequestKind.PREFILL, known, pair.prefill.session)
        await pair.turn_until(lambda: len(pair.answer(1)) == 1)
        pair.prefill.role.cancel((1, 1))
        longer = brief(2, 130, known.tokens)
        pair.begin(longer)
        await pair.mapped()
        report = await pair.handed_over(longer)
        assert (report.transport, report.kv_blocks, report.blocks_pushed) == ("cuda_ipc", 5, 2), (
            "two blocks were cached, and a part of the third"
        )


async def test_a_prompt_computed_before_its_grant_came_is_pulled() -> None:
    async with pushing() as pair:
        prompt = brief(1, 150)
        pair.prefill.role.submit(RequestKind.PREFILL, prompt, pair.prefill.session)
        pair.prefill.turn(2)
        pair.begin_at_decode(prompt)
        await pair.mapped()
        report = await pair.handed_over(prompt)
        assert (report.transport, report.kv_blocks) == ("cuda_ipc", 5)
        assert 0 < report.blocks_pushed < 5


async def test_many_at_once_some_of_them_cancelled_leave_nothing_behind() -> None:
    async with pushing() as pair:
        for number in range(1, 6):
            pair.begin(brief(number, 20 + 30 * number))
            if number % 2 == 0:
                pair.prefill.role.cancel((number, 1))
                pair.decode.role.cancel((number, 1))
        await pair.both_empty()
        await pair.turn_until(lambda: not pair.is_pushing)
        assert pair.decode.role.handoff_counters().digest_mismatches == 0
        assert pair.answer(5) == await pair.alone(brief(5, 170))


async def test_a_cancelled_requests_blocks_drain_until_the_device_has_pushed() -> None:
    async with pushing() as pair:
        prompt = brief(1, 150)
        pair.begin(prompt)
        await pair.mapped()
        pair.prefill.device.held.clear()
        pair.prefill.turn()
        pair.decode.role.cancel((1, 1))
        await pair.turn_until(lambda: pair.decode.engine.load().draining_blocks, prefill=False)
        for _ in range(20):
            await asyncio.sleep(0)
            pair.decode.turn()
        assert pair.decode.engine.load().draining_blocks
        assert pair.is_pushing
        pair.prefill.device.held.set()
        pair.prefill.role.cancel((1, 1))
        await pair.both_empty()


async def test_by_itself_either_way_is_tried_and_every_answer_is_the_same() -> None:
    async with pushing("auto") as pair:
        ways = []
        for number in range(1, 5):
            prompt = brief(number, 33)
            pair.begin(prompt)
            if await pair.chosen():
                await pair.mapped()
            ways.append((await pair.handed_over(prompt)).transport)
        assert {"push", "cuda_ipc"} == set(ways)


async def test_what_cannot_be_pushed_is_refused_where_it_is_demanded(tiny: Path) -> None:
    for kind in (PrefillRole, DecodeRole):
        with pytest.raises(SpliceError) as refused:
            RoleBench(tiny, kind, kv_push="on")
        assert refused.value.param == "kv_push"
        RoleBench(tiny, kind, kv_push="auto")
