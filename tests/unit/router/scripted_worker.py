"""A worker that speaks the real protocol over real gRPC and computes `router_toy_model.next_token`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import grpc.aio
from router_toy_model import next_token

from wire.convert import beams_to_proto, sampling_from_proto
from wire.framing import framed
from wire.kv_layout import KVLayout, compat_id
from wire.model_card import ModelCard
from wire.sampling import Beam, FinishReason, SamplingParams
from wire.v1 import sampling_pb2, worker_pb2, worker_pb2_grpc
from wire.worker_record import Role, WorkerRecord, draw_incarnation

Tokens = Literal["offered", "none", "unreachable", "refused"]
"""What becomes of whoever wants a token stream."""

LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=8, block_tokens=32, dtype="float32")


@dataclass
class Job:
    """One request at one worker."""

    submit: worker_pb2.Submit
    sampling: SamplingParams
    outgoing: asyncio.Queue[worker_pb2.WorkerMessage]
    task: asyncio.Task[None] | None = None


@dataclass
class Script:
    """What to do other than work well."""

    step_s: float = 0.0
    refuse: str = ""
    """Answer every submit with this error code, retryable."""
    fail_hard: str = ""
    """Answer every submit with this error code, not retryable."""
    expected_step_s: float = 0.0
    """How long its steps are predicted to take."""
    die_at_seq: int | None = None
    """Die before giving out this token."""
    silent: bool = False
    """Keep the connection open and say nothing more."""
    hung: bool = False
    """Say that the engine stands still, and let no request get any further."""
    stuck: bool = False
    """The same without saying so: busy, and no progress."""
    cached_tokens: int = 0
    varying_logprobs: bool = False
    """Figures depend on the token, so that choices differ in them."""
    beams: tuple[Beam, ...] = ()
    """What a beam search finds."""
    prompt_piece: int = 7
    """Prompt tokens described in one frame."""
    wrong_incarnation: bool = False
    transfer_fails: bool = False
    """Decode blames prefill for a broken hand-off."""
    tactics: worker_pb2.TacticCounts | None = None
    """What a worker that tunes says of it."""


@dataclass
class Seen:
    """What reached the worker, for tests to look at."""

    reserves: list[Any] = field(default_factory=list)
    prefills: list[Any] = field(default_factory=list)
    generates: list[Any] = field(default_factory=list)
    attaches: list[Any] = field(default_factory=list)
    cancels: list[Any] = field(default_factory=list)
    sessions: int = 0


class ScriptedWorker(worker_pb2_grpc.WorkerServicer):
    def __init__(
        self,
        worker_id: str,
        role: Role,
        card: ModelCard,
        peers: dict[str, ScriptedWorker],
        numerics_id: str = "toy",
        tokens: Tokens = "offered",
    ) -> None:
        self.worker_id, self.role, self.card, self.peers = worker_id, role, card, peers
        self.incarnation = draw_incarnation()
        self.script, self.seen = Script(), Seen()
        self.jobs: dict[int, Job] = {}
        self.held: dict[tuple[int, int], list[int]] = {}
        self.numerics_id = numerics_id
        self.progress = 0
        self.port = 0
        self.record: WorkerRecord
        self.tokens = tokens
        self.token_streams: dict[bytes, asyncio.StreamWriter] = {}
        """By ticket: joined, and not ended."""
        self._tickets: set[bytes] = set()
        self._server: grpc.aio.Server | None = None
        self._token_server: asyncio.Server | None = None

    async def start(self) -> ScriptedWorker:
        self.peers[self.worker_id] = self
        self._server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        self._token_server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.record = WorkerRecord(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            role=self.role,
            endpoint=f"127.0.0.1:{self.port}",
            model=self.card.name,
            card_id=self.card.card_id,
            compat_id=compat_id(LAYOUT, self.card.model_digest, self.numerics_id),
            layout=LAYOUT,
            numerics_id=self.numerics_id,
            num_blocks=1024,
            max_num_seqs=64,
            max_model_len=self.card.max_model_len,
            host_id="here",
            pid=os.getpid(),
        )
        return self

    async def stop(self) -> None:
        """Abrupt: connections break in the middle."""
        self.peers.pop(self.worker_id, None)
        server, self._server = self._server, None
        for job in tuple(self.jobs.values()):
            if job.task is not None:
                job.task.cancel()
        self.jobs.clear()
        if server is not None:
            assert self._token_server is not None
            self._token_server.close()
            await server.stop(0)

    # The service ------------------------------------------------------------------------------------------------------

    async def GetModelCard(self, request: Any, context: Any) -> worker_pb2.ModelCardReply:
        return worker_pb2.ModelCardReply(card_id=self.card.card_id, card=self.card.encode())

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[worker_pb2.WorkerMessage]:
        outgoing: asyncio.Queue[worker_pb2.WorkerMessage] = asyncio.Queue()
        hello = (await anext(aiter(requests))).hello
        if hello.worker_incarnation != self.incarnation:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another incarnation")
        self.seen.sessions += 1
        ticket = secrets.token_bytes(16)
        self._tickets.add(ticket)
        yield self._message(welcome=self._welcome(ticket))
        tasks = [
            asyncio.create_task(self._read(requests, outgoing)),
            asyncio.create_task(self._beat(outgoing)),
        ]
        try:
            while True:
                message = await outgoing.get()
                if self.script.silent:
                    continue
                if ticket in self.token_streams:
                    self.token_streams[ticket].write(framed(message.SerializeToString()))
                else:
                    yield message
        finally:
            for task in tasks:
                task.cancel()
            self._tickets.discard(ticket)
            if ticket in self.token_streams:
                self.token_streams.pop(ticket).close()
            for job in tuple(self.jobs.values()):
                if job.outgoing is outgoing:
                    self._drop(job.submit.request)

    def _welcome(self, ticket: bytes = b"") -> worker_pb2.WorkerWelcome:
        welcome = worker_pb2.WorkerWelcome(worker_id=self.worker_id, role=self.role)
        if ticket and self.tokens != "none":
            assert self._token_server is not None
            port: int = self._token_server.sockets[0].getsockname()[1]
            welcome.token_port, welcome.token_ticket = 1 if self.tokens == "unreachable" else port, ticket
        return welcome

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ticket = await reader.readexactly(16)
        if self.tokens == "refused" or ticket not in self._tickets:
            writer.close()
            return
        writer.write(framed(self._message(welcome=self._welcome()).SerializeToString()))
        self.token_streams[ticket] = writer

    async def _read(self, requests: Any, outgoing: asyncio.Queue[Any]) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for message in requests:
                body = message.WhichOneof("body")
                content = getattr(message, body)
                if body == "cancel":
                    self.seen.cancels.append(content)
                    job = self.jobs.get(content.request)
                    if job is not None and job.submit.attempt <= content.attempt:
                        self._drop(content.request)
                    self.held.pop((content.request, content.attempt), None)
                elif body == "attach":
                    self.seen.attaches.append(content)
                    self._attach(content)
                else:
                    getattr(self.seen, body + "s").append(content)
                    self._submit(body, content, outgoing)

    async def _beat(self, outgoing: asyncio.Queue[Any]) -> None:
        while True:
            beat = worker_pb2.Heartbeat(
                progress=self.progress,
                busy=self.script.stuck,
                hung=self.script.hung,
                expected_step_s=self.script.expected_step_s,
                preemptions=3,
                swapped_out_blocks=20,
                swapped_in_blocks=10,
                tactics=self.script.tactics,
                running=len(self.jobs),
                free_blocks=1000,
            )
            outgoing.put_nowait(self._message(heartbeat=beat))
            await asyncio.sleep(0.05)

    # Work -------------------------------------------------------------------------------------------------------------

    def _submit(self, kind: str, submit: worker_pb2.Submit, outgoing: asyncio.Queue[Any]) -> None:
        job = Job(submit, sampling_from_proto(submit.sampling), outgoing)
        code = self.script.refuse or self.script.fail_hard
        if code:
            self._fail(job, code, retryable=bool(self.script.refuse))
            return
        self.jobs[submit.request] = job
        if kind == "reserve":
            cached = min(self.script.cached_tokens, (len(submit.tokens) - 1) // 32 * 32)
            reserved = worker_pb2.Reserved(request=submit.request, attempt=submit.attempt, cached_tokens=cached)
            outgoing.put_nowait(self._message(reserved=reserved))
        elif kind == "prefill":
            job.task = asyncio.create_task(self._prefill(job))
        else:
            job.task = asyncio.create_task(self._decode(job, list(submit.tokens)))

    async def _prefill(self, job: Job) -> None:
        await asyncio.sleep(self.script.step_s)
        tokens = list(job.submit.tokens)
        self._score_prompt(job)
        if await self._row(job, tokens, handed_off=True):
            self.held[(job.submit.request, job.submit.attempt)] = tokens
        self._drop(job.submit.request, cancel=False)

    def _attach(self, attach: worker_pb2.Attach) -> None:
        job = self.jobs.get(attach.request)
        if job is not None and job.submit.attempt == attach.attempt:
            job.task = asyncio.create_task(self._fetch(job, attach))

    async def _fetch(self, job: Job, attach: worker_pb2.Attach) -> None:
        key = (attach.request, attach.attempt)
        if self.script.transfer_fails:
            self._fail(job, "kv_transfer_failed", retryable=True, blamed=attach.source_worker)
            self._drop(attach.request, cancel=False)
            return
        while True:
            source = self.peers.get(attach.source_worker)
            if source is not None and key in source.held:
                break
            await asyncio.sleep(0.002)
        tokens = source.held.pop(key)
        report = worker_pb2.HandoffReport(
            request=key[0], attempt=key[1], transport="shm", kv_bytes=64 * len(tokens), kv_blocks=1, copy_s=0.001
        )
        job.outgoing.put_nowait(self._message(handoff=report))
        await self._decode(job, tokens)

    async def _decode(self, job: Job, tokens: list[int]) -> None:
        if job.submit.tokens == tokens:
            self._score_prompt(job)
        if job.sampling.beam is not None:
            self._find_beams(job)
            return
        while await self._row(job, tokens):  # noqa: ASYNC110 - the sleep is the step
            await asyncio.sleep(self.script.step_s)
        self._drop(job.submit.request, cancel=False)

    async def _row(self, job: Job, tokens: list[int], *, handed_off: bool = False) -> bool:
        """Draws one token; False when it was the last."""
        while self.script.hung or self.script.stuck:  # noqa: ASYNC110 - a script knows no event
            await asyncio.sleep(0.005)
        submit, sampling = job.submit, job.sampling
        seq = len(tokens) - submit.num_prompt_tokens
        if self.script.die_at_seq is not None and seq >= self.script.die_at_seq:
            await asyncio.shield(asyncio.create_task(self.stop()))
        tokens.append(next_token(tokens, sampling, self.card))
        self.progress += 1
        finish = FinishReason.LENGTH if seq + 1 >= sampling.max_tokens else FinishReason.NONE
        if tokens[-1] in sampling.stop_token_ids:
            finish = FinishReason.STOP
        logprobs = []
        if sampling.logprobs is not None:
            tops = [tokens[-1], *range(2, 2 + max(sampling.logprobs - 1, 0))][: sampling.logprobs]
            figures = [-0.25 - index for index in range(len(tops))]
            logprob = logprob_of(tokens[-1]) if self.script.varying_logprobs else -0.25
            logprobs = [sampling_pb2.TokenLogprobs(logprob=logprob, top_ids=tops, top_logprobs=figures)]
        frame = worker_pb2.StepFrame(
            step=self.progress,
            request=[submit.request],
            attempt=[submit.attempt],
            seq=[seq],
            num_tokens=[1],
            tokens=[tokens[-1]],
            finish=[int(finish)],
            cached_tokens=[0],
            logprobs=logprobs,
            handed_off=[handed_off and finish is FinishReason.NONE],
        )
        job.outgoing.put_nowait(self._message(frame=frame))
        return finish is FinishReason.NONE

    def _score_prompt(self, job: Job) -> None:
        """Of token t as `logprob_of` says, in pieces."""
        if job.sampling.prompt_logprobs is None:
            return
        prompt, size = list(job.submit.tokens)[: job.submit.num_prompt_tokens], self.script.prompt_piece
        for first in range(1, len(prompt), size):
            figures = [
                sampling_pb2.TokenLogprobs(logprob=logprob_of(token), rank=2, top_ids=[3], top_logprobs=[-0.1])
                for token in prompt[first : first + size]
            ]
            piece = worker_pb2.PromptLogprobs(
                request=job.submit.request, attempt=job.submit.attempt, first=first, logprobs=figures
            )
            frame = worker_pb2.StepFrame(step=self.progress, prompt_logprobs=[piece])
            job.outgoing.put_nowait(self._message(frame=frame))

    def _find_beams(self, job: Job) -> None:
        answer = worker_pb2.BeamAnswer(
            request=job.submit.request, attempt=job.submit.attempt, beams=beams_to_proto(self.script.beams)
        )
        job.outgoing.put_nowait(self._message(beams=answer))
        self._drop(job.submit.request, cancel=False)

    def _fail(self, job: Job, code: str, *, retryable: bool, blamed: str = "") -> None:
        failed = worker_pb2.RequestFailed(
            request=job.submit.request,
            attempt=job.submit.attempt,
            code=code,
            message="scripted",
            retryable=retryable,
            blamed_worker=blamed,
        )
        job.outgoing.put_nowait(self._message(failed=failed))

    def _drop(self, request: int, *, cancel: bool = True) -> None:
        job = self.jobs.pop(request, None)
        if job is not None and job.task is not None and cancel:
            job.task.cancel()

    def _message(self, **body: Any) -> worker_pb2.WorkerMessage:
        incarnation = self.incarnation ^ (2 if self.script.wrong_incarnation else 0)
        return worker_pb2.WorkerMessage(incarnation=incarnation, **body)


def logprob_of(token: int) -> float:
    return -0.125 * (1 + token % 13)
