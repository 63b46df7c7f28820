"""Carries out what the request life cycles decide: sends to workers, hands tokens to whoever waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from router.affinity import PrefixMemory
from router.discovery import Fleet
from router.events import (
    Action,
    ChoosePair,
    ClientGone,
    Event,
    Fail,
    Finish,
    Migrated,
    Picked,
    Release,
    SendAttach,
    SendCancel,
    SendGenerate,
    SendPrefill,
    SendReserve,
    StopFound,
    Tick,
    TokenRow,
    WorkerKey,
    WorkerLost,
    WorkersChanged,
)
from router.lifecycle import LifecycleLimits, RequestLifecycle
from router.metrics import RouterMetrics
from router.policy import Demand, pick
from router.receipt import Receipt, Timings
from router.session import WorkerSession
from router.translate import events_of, target_of
from wire.block_hash import chain
from wire.convert import sampling_to_proto
from wire.errors import ErrorCode, SpliceError
from wire.model_card import ModelCard
from wire.sampling import FinishReason, SamplingParams, TokenLogprobs
from wire.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens that came since the last look. After a `finish` or an `error` nothing more comes."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason = FinishReason.NONE
    error: SpliceError | None = None


class Run:
    """One request under way, seen by the one who asked for it: `poll` after `wake` was set."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        request: int,
        card: ModelCard,
        *,
        lifecycle: RequestLifecycle,
        sampling: SamplingParams,
        wake: asyncio.Event,
        now_s: float,
    ) -> None:
        self.request = request
        self.card = card
        self.model = card.name
        self.lifecycle = lifecycle
        self.sampling = sampling
        self.timings = Timings(now_s)
        self.compat_id: str | None = None
        """Of the decode worker chosen last."""
        self.timer: asyncio.TimerHandle | None = None
        self.submitted_to: dict[WorkerKey, int] = {}
        """Prompt tokens still counted on a worker on behalf of this request."""
        self._dispatcher = dispatcher
        self._wake = wake
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._terminal: Finish | Fail | None = None

    def deliver(self, action: Release | Finish | Fail) -> None:
        if isinstance(action, Release):
            self._tokens.extend(action.tokens)
            if self.sampling.logprobs is not None:  # a frame carries blanks for whoever shares it with one who asked
                self._logprobs.extend(action.logprobs)
        else:
            self._terminal = action
        self._wake.set()

    def poll(self) -> Batch | None:
        """What came since the last call; None when nothing did."""
        if not self._tokens and self._terminal is None:
            return None
        finish = self._terminal.reason if isinstance(self._terminal, Finish) else FinishReason.NONE
        error = self._terminal.error if isinstance(self._terminal, Fail) else None
        batch = Batch(tuple(self._tokens), tuple(self._logprobs), finish, error)
        self._tokens.clear()
        self._logprobs.clear()
        if batch.tokens and error is not None:
            self._wake.set()  # the tokens go out first; the error is for the next look
            return Batch(batch.tokens, batch.logprobs)
        return batch

    def stop(self) -> None:
        """The text is complete: a stop string was found."""
        self._dispatcher.feed(self, StopFound())

    def cancel(self) -> None:
        """Nobody wants the answer any more. Does nothing once the request has ended."""
        self._dispatcher.feed(self, ClientGone())

    def receipt(self) -> Receipt:
        return Receipt.of(self.lifecycle, self.timings, self.sampling.seed)


class Dispatcher:
    """All requests of this router by their number."""

    def __init__(
        self, fleet: Fleet, limits: LifecycleLimits, metrics: RouterMetrics, draw_id: Callable[[], int]
    ) -> None:
        self._fleet = fleet
        self._limits = limits
        self._metrics = metrics
        self._draw_id = draw_id
        self._runs: dict[int, Run] = {}
        self._memory = PrefixMemory()
        fleet.attach(self)

    def submit(
        self, card: ModelCard, prompt: tuple[int, ...], sampling: SamplingParams, timeout_s: float, wake: asyncio.Event
    ) -> Run:
        """Starts a request; its tokens, its end and its failure all come through the run."""
        now_s = self._now_s()
        request = self._draw_id()
        while request in self._runs:
            request = self._draw_id()
        lifecycle = RequestLifecycle(prompt, self._limits, deadline_s=now_s + timeout_s)
        run = Run(self, request, card, lifecycle=lifecycle, sampling=sampling, wake=wake, now_s=now_s)
        self._runs[request] = run
        self._metrics.running.labels(card.name).inc()
        self._carry_out(run, lifecycle.start())
        return run

    @property
    def num_running(self) -> int:
        return len(self._runs)

    def feed(self, run: Run, event: Event) -> None:
        """One request's fault stays its own: whatever goes wrong here ends this request only."""
        try:
            self._carry_out(run, run.lifecycle.handle(event, self._now_s()))
        except Exception as error:
            log.exception("request %016x failed on %s", run.request, type(event).__name__)
            self._carry_out(run, run.lifecycle.abandon(internal_error(error)))

    # Fleet ------------------------------------------------------------------------------------------------------------

    def on_message(self, session: WorkerSession, message: pb.WorkerMessage) -> None:
        for request, event in events_of(session.key, message):
            run = self._runs.get(request)
            if run is None:
                continue  # ended here already: the cancel is on its way
            if isinstance(event, TokenRow):
                self._settle(run, session)
            self.feed(run, event)

    def on_worker_lost(self, worker: WorkerKey, reason: str) -> None:
        self._memory.forget(worker)
        for run in tuple(self._runs.values()):
            run.submitted_to.pop(worker, None)
            self.feed(run, WorkerLost(worker, reason))

    def on_workers_changed(self) -> None:
        for run in tuple(self._runs.values()):
            self.feed(run, WorkersChanged())

    # Actions ----------------------------------------------------------------------------------------------------------

    def _carry_out(self, run: Run, actions: list[Action]) -> None:
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            match action:
                case ChoosePair(excluded):
                    todo.extend(run.lifecycle.handle(self._choose(run, excluded), self._now_s()))
                case Release(tokens):
                    self._metrics.on_tokens(run.model, run.timings, len(tokens), self._now_s())
                    run.deliver(action)
                case Migrated(_, _, error):
                    self._metrics.migrations.labels(run.model, error.code.value).inc()
                case Finish() | Fail():
                    self._forget(run, action)
                case _:
                    if not self._send(run, action) and not isinstance(action, SendCancel):
                        lost = WorkerLost(target_of(action), "it has no open session")
                        todo.extend(run.lifecycle.handle(lost, self._now_s()))
        self._schedule(run)

    def _choose(self, run: Run, excluded: frozenset[WorkerKey]) -> Event:
        workers = list(self._fleet.workers())
        tokens = run.lifecycle.prompt
        block_tokens = next((each.record.layout.block_tokens for each in workers), 32)
        hashes = list(chain(tokens, block_tokens))
        cached = {each.key: self._memory.leading_blocks(each.key, hashes) * block_tokens for each in workers}
        demand = Demand(
            model=run.model,
            model_digest=run.card.model_digest,
            num_tokens=len(tokens),
            cached_tokens=cached,
            tie_seed=run.request,
            compat_id=run.compat_id if run.lifecycle.emitted else None,
        )
        choice = pick(demand, workers, excluded)
        if isinstance(choice, Picked):
            run.compat_id = next(each.record.compat_id for each in workers if each.key == choice.decode)
            for worker in (choice.decode, choice.prefill):
                if worker is not None:
                    self._memory.record(worker, hashes)
            if choice.prefill is None:
                self._metrics.local_prefills.labels(run.model).inc()
        return choice

    def _send(self, run: Run, action: Action) -> bool:
        key = target_of(action)
        session = self._fleet.session(key)
        if session is None:
            return False
        request = run.request
        match action:
            case SendReserve(_, attempt, tokens):
                message = pb.RouterMessage(reserve=self._submit_message(run, attempt, tokens))
                self._count(run, session, 0)
            case SendPrefill(_, attempt, tokens, skip_tokens):
                message = pb.RouterMessage(prefill=self._submit_message(run, attempt, tokens, skip_tokens))
                self._count(run, session, len(tokens))
            case SendGenerate(_, attempt, tokens):
                message = pb.RouterMessage(generate=self._submit_message(run, attempt, tokens))
                self._count(run, session, len(tokens))
            case SendAttach(_, attempt, source):
                source_session = self._fleet.session(source)
                endpoint = source_session.record.endpoint if source_session is not None else ""
                message = pb.RouterMessage(
                    attach=pb.Attach(
                        request=request,
                        attempt=attempt,
                        source_worker=source[0],
                        source_incarnation=source[1],
                        source_endpoint=endpoint,
                    )
                )
            case SendCancel(_, attempt, reason):
                message = pb.RouterMessage(cancel=pb.Cancel(request=request, attempt=attempt, reason=reason))
                self._uncount(run, session)
            case _:
                raise TypeError(f"not a message to a worker: {action}")
        return session.send(message)

    def _submit_message(self, run: Run, attempt: int, tokens: tuple[int, ...], skip_tokens: int = 0) -> pb.Submit:
        return pb.Submit(
            request=run.request,
            attempt=attempt,
            tokens=tokens,
            num_prompt_tokens=len(run.lifecycle.prompt),
            sampling=sampling_to_proto(run.sampling),
            timeout_s=max(run.lifecycle.deadline_s - self._now_s(), 0.0),
            skip_tokens=skip_tokens,
        )

    def _count(self, run: Run, session: WorkerSession, prompt_tokens: int) -> None:
        if session.key not in run.submitted_to:
            session.sent_requests += 1
        session.sent_prefill_tokens += prompt_tokens
        run.submitted_to[session.key] = run.submitted_to.get(session.key, 0) + prompt_tokens

    def _settle(self, run: Run, session: WorkerSession) -> None:
        """Its prompt is computed: a first token came."""
        session.sent_prefill_tokens -= run.submitted_to.get(session.key, 0)
        if session.key in run.submitted_to:
            run.submitted_to[session.key] = 0
        if session.record.role == "prefill":
            self._uncount(run, session)

    def _uncount(self, run: Run, session: WorkerSession) -> None:
        tokens = run.submitted_to.pop(session.key, None)
        if tokens is not None:
            session.sent_requests -= 1
            session.sent_prefill_tokens -= tokens

    def _forget(self, run: Run, terminal: Finish | Fail) -> None:
        del self._runs[run.request]
        for key in tuple(run.submitted_to):
            session = self._fleet.session(key)
            if session is not None:
                self._uncount(run, session)
        self._metrics.on_end(run.model, run.lifecycle, run.timings, terminal, self._now_s())
        run.deliver(terminal)
        self._fleet.retire_idle()

    def _schedule(self, run: Run) -> None:
        if run.timer is not None:
            if not run.lifecycle.ended and run.timer.when() <= run.lifecycle.next_tick_s:
                return
            run.timer.cancel()
            run.timer = None
        if not run.lifecycle.ended:
            when_s = run.lifecycle.next_tick_s
            run.timer = asyncio.get_running_loop().call_at(when_s, self._tick, run)

    def _tick(self, run: Run) -> None:
        run.timer = None
        self.feed(run, Tick())

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


def internal_error(error: BaseException) -> SpliceError:
    """What a client sees of a fault nobody foresaw: that it happened, never its text."""
    return SpliceError(ErrorCode.INTERNAL_ERROR, f"the router failed on this request ({type(error).__name__})")
