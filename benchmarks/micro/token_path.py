"""A token's way outside the kernels: from a step's output to a frame, and from a frame to a client's event."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import msgspec
import uvloop
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.micro.instruments import Work
from engine.steps.step_output import TokenRow
from router.dispatch import Dispatcher
from router.events import WorkerKey
from router.http.completions import CompletionsEndpoint
from router.lifecycle import LifecycleLimits
from router.metrics import RouterMetrics
from router.policy import WorkerLoad
from router.service import InferenceService, Randomness
from router.settings import RouterSettings
from wire.framing import FrameReader, framed
from wire.kv_layout import KVLayout
from wire.model_card import ModelCard
from wire.sampling import FinishReason
from wire.v1 import worker_pb2
from wire.worker_record import WorkerRecord
from worker.frames import step_frame

INCARNATION = 7
STEPS = 16


def framing(rows: int) -> Work:
    """What `rows` requests got from a step, packed, as it is written to a router."""
    output = [TokenRow((number, 1), 40, (100 + number,), FinishReason.NONE, 32) for number in range(rows)]

    def frame() -> bytes:
        message = worker_pb2.WorkerMessage(incarnation=INCARNATION, frame=step_frame(1, output))
        return framed(message.SerializeToString())

    return frame


def routing(streams: int) -> Work:
    """16 steps' frames, a token of each of `streams` requests in every one, become events of as many clients.

    It can be done 16 times.
    """
    loop = uvloop.new_event_loop()
    router = loop.run_until_complete(_Router.serving(streams))
    frames = router.frames()
    batches = iter([[next(frames) for _ in range(STEPS)] for _ in range(16)])

    def route() -> None:
        loop.run_until_complete(router.receive(next(batches)))

    return route


class _Router:
    """A router between one worker that has said what it says already, and clients that keep nothing."""

    def __init__(self) -> None:
        self.fleet, ids = _OneWorker(), count(1)
        metrics = RouterMetrics()
        fleet: Any = self.fleet
        self.dispatcher = Dispatcher(fleet, LifecycleLimits(), metrics, lambda: next(ids))
        self.service = InferenceService(
            RouterSettings(),
            fleet=fleet,
            dispatcher=self.dispatcher,
            metrics=metrics,
            randomness=Randomness(lambda: 1, lambda: next(ids)),
            now=lambda: datetime.now(UTC),
            view_age_s=lambda: 0.0,
        )
        self._reader = FrameReader()
        self._clients: list[asyncio.Task[None]] = []

    @classmethod
    async def serving(cls, streams: int) -> _Router:
        router = cls()
        for number in range(streams):
            client = _Client(number)
            endpoint = CompletionsEndpoint(router.service)
            router._clients.append(asyncio.create_task(endpoint(client.scope, client.receive, client.send)))
        while len(router.fleet.sent) < streams:  # noqa: ASYNC110 - what is waited for knows no event
            await asyncio.sleep(0)
        return router

    def frames(self) -> Iterator[bytes]:
        requests = [message.generate.request for message in self.fleet.sent]
        letter = self.fleet.alphabet["e"]
        for seq in count():
            rows = [TokenRow((request, 1), seq, (letter,), FinishReason.NONE, 0) for request in requests]
            message = worker_pb2.WorkerMessage(incarnation=INCARNATION, frame=step_frame(seq, rows))
            yield framed(message.SerializeToString())

    async def receive(self, frames: list[bytes]) -> None:
        session: Any = self.fleet
        for data in frames:
            for message in self._reader.feed(data):
                self.dispatcher.on_message(session, worker_pb2.WorkerMessage.FromString(message))
            await asyncio.sleep(0)
            await asyncio.sleep(0)


class _OneWorker:
    """Fleet and session in one."""

    def __init__(self) -> None:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        self.alphabet = {letter: index for index, letter in enumerate(letters)}
        tokenizer = Tokenizer(models.BPE(self.alphabet, []))
        tokenizer.decoder = decoders.ByteLevel()
        self.model_card = ModelCard(
            name="model",
            architecture="none",
            model_digest="0" * 32,
            vocab_size=len(letters),
            max_model_len=1 << 20,
            tokenizer_json=tokenizer.to_str(),
            chat_template=None,
            bos_token=None,
            eos_token=None,
            bos_token_id=None,
            eos_token_ids=(),
            add_bos=False,
        )
        self.record = WorkerRecord(
            worker_id="worker",
            incarnation=INCARNATION,
            role="decode",
            endpoint="",
            model="model",
            card_id=self.model_card.card_id,
            compat_id="",
            layout=KVLayout(num_layers=1, num_kv_heads=1, head_dim=8, block_tokens=32, dtype="float32"),
            numerics_id="",
            num_blocks=1 << 20,
            max_num_seqs=256,
            max_model_len=1 << 20,
            host_id="",
            pid=1,
        )
        self.key: WorkerKey = (self.record.worker_id, INCARNATION)
        self.sent: list[worker_pb2.RouterMessage] = []
        self.sent_requests = 0
        self.sent_prefill_tokens = 0

    def attach(self, _: object) -> None:
        """The dispatcher is called by hand."""

    def workers(self) -> Iterator[WorkerLoad]:
        yield WorkerLoad(self.record, self.model_card.model_digest, free_blocks=1 << 20)

    def card(self, _: str) -> ModelCard:
        return self.model_card

    def session(self, _: WorkerKey) -> _OneWorker:
        return self

    def send(self, message: worker_pb2.RouterMessage) -> bool:
        self.sent.append(message)
        return True

    def retire_idle(self) -> None:
        """It never leaves."""


class _Client:
    """One streamed completion over ASGI."""

    def __init__(self, number: int) -> None:
        body = {"model": "model", "prompt": [number] * 8, "max_tokens": 1 << 18, "ignore_eos": True, "stream": True}
        self._body = msgspec.json.encode(body)
        self._has_asked = False
        self.scope = {"type": "http", "headers": [], "state": {"request_id": str(number)}}

    async def receive(self) -> dict[str, object]:
        if self._has_asked:
            await asyncio.get_running_loop().create_future()  # it stays
        self._has_asked = True
        return {"type": "http.request", "body": self._body}

    async def send(self, message: object) -> None:
        """Its socket takes everything at once."""
