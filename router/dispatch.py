"""Carries out what the request life cycles decide: sends to workers, hands tokens to whoever waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from router.affinity import PrefixMemory
from router.discovery import Fleet
from router.events import (
    Action,
    ChoosePair,
    Event,
    Fail,
    Finish,
    HandedOff,
    Migrated,
    Picked,
    Release,
    SendAttach,
    SendCancel,
    SendGenerate,
    SendPrefill,
    SendReserve,
    Tick,
    TokenRow,
    WorkerKey,
    WorkerLost,
    WorkersChanged,
)
from router.lifecycle import LifecycleLimits, RequestLifecycle
from router.metrics import RouterMetrics
from router.policy import Demand, WorkerLoad, pick
from router.run import Run
from router.session import WorkerSession
from router.translate import events_of, target_of
from router.unforeseen import internal_error
from router.wanted import Wanted, for_prefill, for_reservation
from wire.block_hash import chain
from wire.convert import sampling_to_proto
from wire.model_card import ModelCard
from wire.sampling import SamplingParams
from wire.v1 import worker_pb2 as pb

log = logging.getLogger(__name__)


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
        self,
        card: ModelCard,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        timeout_s: float,
        wake: asyncio.Event,
        *,
        leader: Run | None = None,
    ) -> Run:
        """Starts a request; its tokens, its end and its failure all come through the run.

        `leader`: another choice of the same prompt. This one waits until decode has that one's KV, and goes to the same
        workers, where only the end of the prompt is left to compute. If the leader fails, so does this one.
        """
        now_s = self._now_s()
        request = self._draw_id()
        while request in self._runs:
            request = self._draw_id()
        limits = self._limits if leader is None else self._limits_beside_leader()
        lifecycle = RequestLifecycle(prompt, limits, deadline_s=now_s + timeout_s, wanted=Wanted.by(sampling))
        run = Run(self.feed, request, card, lifecycle=lifecycle, sampling=sampling, wake=wake, now_s=now_s)
        self._runs[request] = run
        self._metrics.running.labels(card.name).inc()
        if leader is None:
            self._carry_out(run, lifecycle.start())
        else:
            run.leader = leader
            leader.waiting.append(run)
            self._schedule(run)
        return run

    @property
    def num_running(self) -> int:
        return len(self._runs)

    def feed(self, run: Run, event: Event) -> None:
        """One request's fault stays its own: whatever goes wrong here ends this request only."""
        try:
            now_s = self._now_s()
            actions = run.lifecycle.handle(event, now_s)
            if len(actions) == 1 and isinstance(actions[0], Release):
                self._release(run, actions[0], now_s)  # nothing else changed: neither a message nor a timer is due
            else:
                self._carry_out(run, actions)
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
                if run.submitted_to.get(session.key):
                    self._settle(run, session)
            elif isinstance(event, HandedOff) and event.attempt == run.lifecycle.attempt:
                self._let_go(run.lifecycle.prefill, run)
            self.feed(run, event)
            if run.waiting and _prompt_is_shared(run, event):
                self._start_waiting(run)

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
                case Release():
                    self._release(run, action, self._now_s())
                case Migrated(_, _, error):
                    self._metrics.migrations.labels(run.model, error.code.value).inc()
                case Finish() | Fail():
                    self._forget(run, action)
                case _:
                    if not self._send(run, action) and not isinstance(action, SendCancel):
                        lost = WorkerLost(target_of(action), "it has no open session")
                        todo.extend(run.lifecycle.handle(lost, self._now_s()))
        self._schedule(run)

    def _release(self, run: Run, action: Release, now_s: float) -> None:
        self._metrics.on_tokens(run.model, run.timings, len(action.tokens), now_s)
        run.deliver(action)

    def _limits_beside_leader(self) -> LifecycleLimits:
        """A prompt that decode holds but for less than a block is finished there."""
        block_tokens = next((each.record.layout.block_tokens for each in self._fleet.workers()), 0)
        return replace(self._limits, max_local_prefill_tokens=max(self._limits.max_local_prefill_tokens, block_tokens))

    def _start_waiting(self, leader: Run) -> None:
        waiting, leader.waiting = leader.waiting, []
        for run in waiting:
            if not run.lifecycle.ended:
                self._carry_out(run, run.lifecycle.start())

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
        leader = run.leader if not run.lifecycle.failures else None
        choice = _beside(leader, workers, excluded) or pick(demand, workers, excluded)
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
                sampling = for_reservation(run.sampling)
                message = pb.RouterMessage(reserve=self._submit_message(run, attempt, tokens, sampling=sampling))
                self._count(run, session, 0)
            case SendPrefill(_, attempt, tokens, skip_tokens):
                sampling = for_prefill(run.sampling, run.card.eos_token_ids)
                submit = self._submit_message(run, attempt, tokens, skip_tokens, sampling=sampling)
                message = pb.RouterMessage(prefill=submit)
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

    def _submit_message(
        self,
        run: Run,
        attempt: int,
        tokens: tuple[int, ...],
        skip_tokens: int = 0,
        *,
        sampling: SamplingParams | None = None,
    ) -> pb.Submit:
        sampling = sampling or run.sampling
        if not run.lifecycle.scores_prompt:
            sampling = for_reservation(sampling)
        return pb.Submit(
            request=run.request,
            attempt=attempt,
            tokens=tokens,
            num_prompt_tokens=len(run.lifecycle.prompt),
            sampling=sampling_to_proto(sampling),
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

    def _let_go(self, prefill: WorkerKey | None, run: Run) -> None:
        """Decode has all the KV. Until then the source is needed: ending its session would end its holds."""
        session = self._fleet.session(prefill) if prefill is not None else None
        if session is not None:
            self._uncount(run, session)
            self._fleet.retire_idle()

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
        if isinstance(terminal, Finish):
            self._start_waiting(run)
        else:
            waiting, run.waiting = run.waiting, []
            for other in waiting:
                self._carry_out(other, other.lifecycle.abandon(terminal.error))
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


def _prompt_is_shared(run: Run, event: Event) -> bool:
    """Decode has the KV of the whole prompt: fetched, or computed there."""
    if isinstance(event, HandedOff):
        return event.attempt == run.lifecycle.attempt
    return isinstance(event, TokenRow) and event.worker == run.lifecycle.decode


def _beside(leader: Run | None, workers: Iterable[WorkerLoad], excluded: frozenset[WorkerKey]) -> Picked | None:
    """The workers that serve the leader, while both take new requests."""
    if leader is None or leader.lifecycle.decode is None:
        return None
    decode, prefill = leader.lifecycle.decode, leader.lifecycle.prefill
    open_to_all = {each.key for each in workers if each.available} - excluded
    wanted = {decode} | ({prefill} if prefill is not None else set())
    return Picked(decode, prefill) if wanted <= open_to_all else None
