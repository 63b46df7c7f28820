"""Sends a workload to a server and records what came back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from splice.bench.answer import StreamedAnswer, body_error
from splice.bench.arrivals import due_times
from splice.bench.connection import ConnectionPool, Target
from splice.bench.dialect import Dialect
from splice.bench.prompts import TextOf
from splice.bench.sample import RequestSample
from splice.bench.script import Ask, ScriptWriter
from splice.bench.workload import Workload
from wire.errors import ErrorCode, SpliceError

Progress = Callable[[int, int, int], None]
"""(scripts ended, scripts in all, output tokens so far)."""

_BESIDE = 5
"""Keeps the prompts of a workload beside another apart from those of the same workload alone."""


@dataclass(frozen=True, slots=True)
class ServerAccess:
    """What the client knows of the server."""

    target: Target
    model: str
    dialect: Dialect


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Samples in order of their due times; `wall_s` from the first due time to the end of the last answer."""

    samples: tuple[RequestSample, ...]
    wall_s: float
    beside: tuple[RequestSample, ...] = ()
    """Of the workload beside it, those that ended before the last answer did."""


def run_load(
    workload: Workload,
    server: ServerAccess,
    *,
    seed: tuple[int, ...],
    timeout_s: float,
    text_of: TextOf | None = None,
    progress: Progress = lambda _ended, _all, _tokens: None,
) -> LoadResult:
    """Blocks until every request has ended or `timeout_s` is over; whatever fails is a sample with an error.

    Raises SpliceError only if nothing listens at the server's address.
    """
    import uvloop  # noqa: PLC0415 (the other commands do without it)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        run = _Run(workload, server, seed, timeout_s, text_of, progress)
        if workload.beside is None:
            return runner.run(run.run())
        beside = _Run(workload.beside, server, (*seed, _BESIDE), timeout_s, text_of, lambda _ended, _all, _tokens: None)
        return runner.run(run.run_beside(beside))


class _Run:
    def __init__(
        self,
        workload: Workload,
        server: ServerAccess,
        seed: tuple[int, ...],
        timeout_s: float,
        text_of: TextOf | None,
        progress: Progress,
    ) -> None:
        self._workload, self._server, self._seed, self._timeout_s = workload, server, seed, timeout_s
        self._progress = progress
        self._pool = ConnectionPool(server.target)
        self._writer = ScriptWriter(workload, server.model, server.dialect, seed, text_of)
        self._first = [self._writer.ask(index) for index in range(workload.requests)]
        self._samples: list[RequestSample] = []
        self._ended = self._tokens = 0
        self._began_s = self._deadline_s = 0.0

    async def run(self) -> LoadResult:
        await self._check_listening()
        self._began_s = time.perf_counter()
        self._deadline_s = self._began_s + self._timeout_s
        streams = self._workload.streams
        try:
            async with asyncio.TaskGroup() as tasks:
                if streams is not None:
                    queue = iter(range(self._workload.requests))
                    for _ in range(min(streams, self._workload.requests)):
                        tasks.create_task(self._stream(queue))
                else:
                    traced = tuple(line.timestamp for line in self._workload.trace)
                    times = due_times(self._workload.arrivals, self._workload.requests, (*self._seed, 3), traced)
                    for index, due_s in enumerate(times):
                        tasks.create_task(self._script(index, self._began_s + due_s))
        finally:
            self._pool.close()
        samples = tuple(sorted(self._samples, key=lambda sample: (sample.due_us, sample.index)))
        ends_us = max((sample.due_us + sample.end_us for sample in samples), default=0)
        return LoadResult(samples, (ends_us - samples[0].due_us) / 1e6 if samples else 0.0)

    async def run_beside(self, other: _Run) -> LoadResult:
        """`run` while `other` repeats its requests, each time with new prompts; what is still open then is dropped."""
        noise = asyncio.create_task(other.go_on())
        try:
            result = await self.run()
        finally:
            noise.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await noise
        return LoadResult(result.samples, result.wall_s, tuple(other._samples))

    async def go_on(self) -> None:
        """The closed loop without end."""
        self._began_s = time.perf_counter()
        self._deadline_s = self._began_s + self._timeout_s
        indices = itertools.count()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._workload.streams or 0):
                    tasks.create_task(self._stream(indices))
        finally:
            self._pool.close()

    async def _check_listening(self) -> None:
        """One GET before the clock starts: a wrong address is one clear error and not a thousand failed samples."""
        request = self._pool.encode("/v1/models", b"", method="GET")
        async with asyncio.timeout(30):
            await self._pool.send(request, _Discard())

    async def _stream(self, queue: Iterator[int]) -> None:
        for index in queue:
            await self._script(index, time.perf_counter())

    async def _script(self, index: int, due_s: float) -> None:
        """Plays script `index` from `due_s` on; ends early when a request fails."""
        answers: list[str] = []
        for turn in range(self._writer.turns):
            ask = self._first[index] if not turn and index < len(self._first) else self._writer.ask(index, answers)
            if (pause_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(pause_s)
            answer, sample = await self._request(index, ask, due_s)
            self._samples.append(sample)
            self._tokens += sample.output_tokens
            if sample.error is not None:
                break
            answers.append(answer.text)
            due_s = time.perf_counter() + self._writer.think_s
        self._ended += 1
        self._progress(self._ended, self._workload.requests, self._tokens)

    async def _request(self, index: int, ask: Ask, due_s: float) -> tuple[StreamedAnswer, RequestSample]:
        answer, error = StreamedAnswer(), None
        request = self._pool.encode(ask.path, ask.body)
        sent_s = time.perf_counter()
        try:
            async with asyncio.timeout(max(0.0, self._deadline_s - sent_s)):
                status, body = await self._pool.send(request, answer)
            if status != 200:
                error = body_error(status, body)
            else:
                error = answer.problem(ask.output_tokens, exact=self._server.dialect.exact)
        except SpliceError as failure:
            error = failure.message
        except TimeoutError:
            error = f"not complete when the run's {self._timeout_s:g} s were over"
        end_s = time.perf_counter()
        times = answer.piece_times_s
        return answer, RequestSample(
            index=index,
            due_us=_us(due_s - self._began_s),
            sent_us=_us(sent_s - due_s),
            first_us=_us(times[0] - due_s) if times else None,
            gaps_us=tuple(_us(later) - _us(earlier) for earlier, later in _pairs([each - due_s for each in times])),
            end_us=_us(end_s - due_s),
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            output_tokens=answer.output_tokens,
            wanted_tokens=ask.output_tokens,
            finish=answer.finish,
            text_digest=answer.text_digest,
            error=error,
        )


class _Discard:
    def feed(self, now_s: float, chunk: bytes) -> None:
        """The body of the first GET tells nothing that is needed."""


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _pairs(times: list[float]) -> Iterator[tuple[float, float]]:
    return itertools.pairwise(times)


def model_names(target: Target, timeout_s: float = 10.0) -> list[str]:
    """What the server says it serves. Raises SpliceError if it says nothing usable."""
    body = fetch(target, "/v1/models", timeout_s)
    try:
        return [str(model["id"]) for model in msgspec.json.decode(body)["data"]]
    except (msgspec.DecodeError, KeyError, TypeError):
        raise SpliceError(
            ErrorCode.MODEL_NOT_FOUND,
            f"{target.host}:{target.port}/v1/models names no models; say which to ask for with --model",
            param="model",
        ) from None


def fetch(target: Target, path: str, timeout_s: float) -> bytes:
    """The body of one GET that answers 200. Raises SpliceError otherwise."""

    class Body:
        def __init__(self) -> None:
            self.content = b""

        def feed(self, now_s: float, chunk: bytes) -> None:
            self.content += chunk

    async def get() -> bytes:
        pool, sink = ConnectionPool(target), Body()
        try:
            async with asyncio.timeout(timeout_s):
                status, body = await pool.send(pool.encode(path, b"", method="GET"), sink)
        except TimeoutError:
            raise SpliceError(
                ErrorCode.MISSING_PART, f"{target.host}:{target.port}{path} did not answer within {timeout_s:g} s"
            ) from None
        finally:
            pool.close()
        if status != 200:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, body_error(status, body))
        return sink.content

    return asyncio.run(get())
