"""What a role does on the engine thread, and the bookkeeping both roles need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import grpc.aio
import structlog

from engine.engine import Engine
from engine.scheduling.request import Request, RequestKey, RequestKind
from engine.steps.step_output import ScoredPrompt, StepOutput, TokenRow
from engine.tuning.tactic_counts import TacticCounts
from kvtransfer.handoff import WorkerIdentity
from wire.block_hash import root_hash
from wire.convert import sampling_from_proto
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason
from wire.v1 import worker_pb2
from worker.answer_texts import AnswerTexts
from worker.frames import beam_answer, step_frame
from worker.pool_place import PoolPlace
from worker.request_table import RequestTable, Tracked
from worker.session import RouterSession
from worker.settings import WorkerSettings

log = structlog.get_logger()

LOAD_PERIOD_S = 0.05
"""Measuring the load costs time in proportion to requests and blocks: not in every step."""

NO_DEADLINE_S = 24 * 3600.0
"""Used when a router names no time limit, so that nothing can stay for ever."""


@dataclass(frozen=True, slots=True)
class RoleParts:
    """What a role is built from. `post` runs a command on the engine thread; `clock` is monotonic, in seconds."""

    engine: Engine
    texts: AnswerTexts
    place: PoolPlace
    identity: WorkerIdentity
    settings: WorkerSettings
    post: Callable[[Callable[[], None]], None]
    clock: Callable[[], float]
    tactic_counts: Callable[[], TacticCounts] | None = None
    """See `LoadedModel`."""


@dataclass(frozen=True, slots=True)
class HandoffCounters:
    """KV hand-off totals since start, of either side."""

    kv_bytes_in: int = 0
    kv_blocks_in: int = 0
    digest_mismatches: int = 0
    transport_fallbacks: int = 0
    leases_active: int = 0
    leases_expired: int = 0
    kv_blocks_pushed: int = 0
    """Of `kv_blocks_in`: those that were there when they were announced."""


class Role(ABC):
    """Owns the requests of one worker. Every method but the three last runs on the engine thread."""

    kinds: frozenset[RequestKind]
    """Kinds of request this role takes; others are refused."""

    def __init__(self, parts: RoleParts) -> None:
        self.engine = parts.engine
        self.settings = parts.settings
        self.table = RequestTable()
        self.draining = False
        self.load = parts.engine.load()
        """At most `LOAD_PERIOD_S` older than the last turn of the engine thread; other threads may read it."""
        self.tactic_counts = parts.tactic_counts
        self._texts = parts.texts
        self._place = parts.place
        self._load_taken_s = parts.clock()
        self._waiting_for_idle: list[Future[None]] = []
        self._post = parts.post
        self._clock = parts.clock

    # Messages from routers

    def submit(self, kind: RequestKind, message: worker_pb2.Submit, session: RouterSession) -> None:
        """Takes a request, or answers with RequestFailed. A late or repeated message is dropped."""
        key = (message.request, message.attempt)
        now_s = self._clock()
        timeout_s = message.timeout_s if message.timeout_s > 0 else NO_DEADLINE_S
        try:
            replaced = self.table.add(Tracked(key, session, now_s, now_s + timeout_s))
        except KeyError:
            log.info("submit_dropped", request=f"{message.request:016x}", attempt=message.attempt)
            return
        if replaced is not None:
            self._end(replaced.key)
        try:
            self._check_open(kind)
            self.engine.submit(_request(kind, message, self._texts))
        except SpliceError as error:
            self.fail(key, error, retryable=error.code in _RETRYABLE)
        except Exception as error:  # the boundary of one message: whatever it holds, the others go on
            log.exception("submit_failed", request=f"{message.request:016x}", attempt=message.attempt)
            self._end(key)
            self.fail(key, SpliceError(ErrorCode.INVALID_REQUEST, f"the request cannot be read: {error!r}"))
        else:
            self._taken(kind, key, message)

    def attach(self, message: worker_pb2.Attach, session: RouterSession) -> None:
        """Only a decode worker fetches; anyone else refuses."""
        error = SpliceError(ErrorCode.INVALID_REQUEST, f"a {self.settings.role} worker takes no attach")
        self._send_failed(session, (message.request, message.attempt), error, retryable=False, blamed=None)

    def cancel(self, key: RequestKey) -> None:
        """Ends the request and frees its memory; unknown requests are no error."""
        if self.table.remove(key) is not None:
            self._end(key)

    def session_lost(self, session: RouterSession) -> None:
        """Cancels everything that came over this session."""
        for tracked in self.table.of_session(session):
            self.cancel(tracked.key)

    def drain(self, idle: Future[None]) -> None:
        """Refuses new requests from now on; `idle` is resolved once none is left."""
        self.draining = True
        self._waiting_for_idle.append(idle)

    # From the engine loop

    def tick(self) -> None:
        """Raises DeviceLost where the worker has to end."""
        now_s = self._clock()
        if now_s - self._load_taken_s >= LOAD_PERIOD_S:
            self.load, self._load_taken_s = self.engine.load(), now_s
            self._place.check_device()  # a hand-off may have found it lost while there was nothing to compute
        if self._waiting_for_idle and not len(self.table):
            for idle in self._waiting_for_idle:
                if idle.set_running_or_notify_cancel():
                    idle.set_result(None)
            self._waiting_for_idle.clear()
        for tracked in self.table.expired(now_s):
            waited = tracked.deadline_s - tracked.received_s
            self._end(tracked.key)
            self.fail(tracked.key, SpliceError(ErrorCode.DEADLINE_EXCEEDED, f"not finished within {waited:.3f} s"))

    def on_output(self, output: StepOutput) -> None:
        self._send_rows(output.rows, output.scored)
        for found in output.beams:
            tracked = self.table.remove(found.key)
            if tracked is not None:
                tracked.session.send(beams=beam_answer(found))
        for key, error in output.failed:
            self.fail(key, error, retryable=error.code in _RETRYABLE or error.code is ErrorCode.INTERNAL_ERROR)

    def fail(self, key: RequestKey, error: SpliceError, *, retryable: bool = False, blamed: str | None = None) -> None:
        """Tells the router that the request ended here; its engine state must already be gone."""
        tracked = self.table.remove(key)
        if tracked is not None:
            self._send_failed(tracked.session, key, error, retryable=retryable, blamed=blamed)

    def _taken(self, kind: RequestKind, key: RequestKey, message: worker_pb2.Submit) -> None:  # noqa: B027 (a hook)
        """The engine took the request; called once for each."""

    @contextmanager
    def _only(self, key: RequestKey) -> Iterator[None]:
        """The boundary of one request: what goes wrong inside ends this request, and the worker goes on.

        Another worker may fare better, so the router is asked to try.
        """
        try:
            yield
        except Exception as error:
            log.exception("request_failed", request=f"{key[0]:016x}", attempt=key[1])
            self._end(key)
            code, what = ErrorCode.INTERNAL_ERROR, f"request {key[0]:016x} attempt {key[1]} failed here: {error!r}"
            self.fail(key, SpliceError(code, what), retryable=True)

    @abstractmethod
    def _end(self, key: RequestKey) -> None:
        """Stops whatever runs for the request and frees or drains its memory."""

    @abstractmethod
    def handoff_counters(self) -> HandoffCounters: ...

    # Around the event loop

    @abstractmethod
    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Registers the role's own gRPC services."""

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    def _check_open(self, kind: RequestKind) -> None:
        if self.draining:
            raise SpliceError(ErrorCode.DRAINING, "this worker is draining and takes no new work; use another")
        if kind not in self.kinds:
            raise SpliceError(
                ErrorCode.INVALID_REQUEST, f"a {self.settings.role} worker takes no {kind.name.lower()} request"
            )

    def _send_rows(self, rows: Iterable[TokenRow], scored: Iterable[ScoredPrompt]) -> None:
        by_session: defaultdict[RouterSession, list[TokenRow]] = defaultdict(list)
        scored_by_session: defaultdict[RouterSession, list[ScoredPrompt]] = defaultdict(list)
        for piece in scored:
            tracked = self.table.get(piece.key)
            if tracked is not None:
                scored_by_session[tracked.session].append(piece)
        for row in rows:
            tracked = self.table.get(row.key)
            if tracked is None:
                continue
            by_session[tracked.session].append(row)
            if row.finish != FinishReason.NONE:
                self.table.remove(row.key)
        for session in {**scored_by_session, **by_session}:
            frame = step_frame(self.engine.stats.steps, by_session[session], scored_by_session[session])
            session.send(frame=frame)

    def _send_failed(
        self, session: RouterSession, key: RequestKey, error: SpliceError, *, retryable: bool, blamed: str | None
    ) -> None:
        session.send(
            failed=worker_pb2.RequestFailed(
                request=key[0],
                attempt=key[1],
                code=error.code.value,
                message=error.message,
                retryable=retryable,
                blamed_worker=blamed or "",
            )
        )


_RETRYABLE = frozenset(
    {
        ErrorCode.DRAINING,
        ErrorCode.OVERLOADED,
        ErrorCode.KV_TRANSFER_FAILED,
        ErrorCode.KV_DIGEST_MISMATCH,
        ErrorCode.INCARNATION_MISMATCH,
        ErrorCode.WORKER_LOST,
    }
)


def _request(kind: RequestKind, message: worker_pb2.Submit, texts: AnswerTexts) -> Request:
    media = [(one.position, one.hash) for one in message.media]
    sampling = sampling_from_proto(message.sampling)
    return Request(
        key=(message.request, message.attempt),
        tokens=list(message.tokens),
        num_prompt_tokens=message.num_prompt_tokens,
        sampling=sampling,
        root=root_hash(message.cache_salt, message.adapter, media),
        priority=message.priority,
        kind=kind,
        skip_tokens=message.skip_tokens,
        answer_text=texts.of_search(sampling),
    )
