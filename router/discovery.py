"""Who can be sent work right now: follows the list of worker records with one session and one model card each."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import grpc.aio
import msgspec

from router.events import WorkerKey
from router.policy import WorkerLoad
from router.session import SessionListener, SessionTiming, WorkerSession
from wire.errors import ErrorCode, SpliceError
from wire.model_card import ModelCard, decode_card
from wire.v1 import worker_pb2 as pb
from wire.worker_record import WorkerRecord

log = logging.getLogger(__name__)

_CARD_RETRY_S = 0.5


class FleetListener(Protocol):
    """Told of everything that matters to requests."""

    def on_message(self, session: WorkerSession, message: pb.WorkerMessage) -> None: ...
    def on_worker_lost(self, worker: WorkerKey, reason: str) -> None: ...
    def on_workers_changed(self) -> None: ...


class Fleet(SessionListener):
    """Sessions by worker and model cards by content hash.

    `update` is called with the whole list whenever membership changes. A worker counts as available once its session is
    up and its model's card is here. A worker that left the list keeps its session while requests are on it: membership
    loss is no proof of death, a dead stream is.
    """

    def __init__(self, router_id: str, router_incarnation: int, timing: SessionTiming) -> None:
        self._router_id = router_id
        self._router_incarnation = router_incarnation
        self._timing = timing
        self._sessions: dict[WorkerKey, WorkerSession] = {}
        self._listed: set[WorkerKey] = set()
        self._cards: dict[str, ModelCard] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: FleetListener | None = None
        self._prepare: Callable[[ModelCard], Awaitable[None]] | None = None

    def attach(self, listener: FleetListener) -> None:
        self._listener = listener

    def prepare_with(self, prepare: Callable[[ModelCard], Awaitable[None]]) -> None:
        """`prepare` runs for every new card before workers with it count as available."""
        self._prepare = prepare

    # Membership -------------------------------------------------------------------------------------------------------

    def update(self, records: Iterable[WorkerRecord]) -> None:
        """Opens sessions to new workers; closes idle ones to workers no longer listed."""
        listed = {(record.worker_id, record.incarnation): record for record in records}
        self._listed = set(listed)
        for key, record in listed.items():
            session = self._sessions.get(key)
            if session is None:
                self._sessions[key] = session = WorkerSession(
                    record, self._router_id, self._router_incarnation, self, self._timing
                )
                session.start()
            else:
                session.record = record
        self.retire_idle()
        self._changed()

    def retire_idle(self) -> None:
        """Closes sessions to unlisted workers that carry no request or no stream."""
        for key in [key for key in self._sessions if key not in self._listed]:
            session = self._sessions[key]
            if not session.connected or session.sent_requests == 0:
                del self._sessions[key]
                self._spawn(session.close())

    async def close(self) -> None:
        sessions, self._sessions = list(self._sessions.values()), {}
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, *(session.close() for session in sessions), return_exceptions=True)

    # What can be used -------------------------------------------------------------------------------------------------

    def session(self, key: WorkerKey) -> WorkerSession | None:
        return self._sessions.get(key)

    def workers(self) -> Iterator[WorkerLoad]:
        """Listed workers with a live session and a known card."""
        for key, session in self._sessions.items():
            if key in self._listed and session.connected and session.record.card_id in self._cards:
                yield replace(session.load, model_digest=self._cards[session.record.card_id].model_digest)

    def heartbeats(self) -> Iterator[tuple[str, pb.Heartbeat]]:
        """The last word of each worker with a live session, by its name."""
        for session in self._sessions.values():
            if session.connected:
                yield session.record.worker_id, session.heartbeat

    def models(self) -> dict[str, ModelCard]:
        """Cards of the models some available worker serves, by served name.

        Where workers of one name hold different weights, those that most decode workers hold are served.
        """
        votes: dict[str, Counter[tuple[bool, str]]] = defaultdict(Counter)
        for load in self.workers():
            votes[load.record.model][(load.record.role == "decode", load.record.card_id)] += 1
        served = {name: _winner(count) for name, count in votes.items()}
        return {name: self._cards[card_id] for name, card_id in served.items()}

    def card(self, model: str) -> ModelCard:
        """Raises model_not_found naming what is served. A model whose workers are away stays known by its card."""
        known = self.models()
        if model in known:
            return known[model]
        for card in self._cards.values():
            if card.name == model:
                return card
        served = ", ".join(sorted(known)) or "none yet"
        raise SpliceError(ErrorCode.MODEL_NOT_FOUND, f"no model {model!r}; served: {served}", param="model")

    # Sessions ---------------------------------------------------------------------------------------------------------

    def on_connected(self, session: WorkerSession) -> None:
        log.info("worker %s (%s) connected", session.record.worker_id, session.record.role)
        if session.record.card_id in self._cards:
            self._changed()
        else:
            self._spawn(self._fetch_card(session))

    def on_message(self, session: WorkerSession, message: pb.WorkerMessage) -> None:
        if self._listener is not None:
            self._listener.on_message(session, message)

    def on_lost(self, session: WorkerSession, reason: str) -> None:
        if self._listener is not None:
            self._listener.on_worker_lost(session.key, reason)
        self.retire_idle()
        self._changed()

    async def _fetch_card(self, session: WorkerSession) -> None:
        while session.connected and session.record.card_id not in self._cards:
            try:
                card = decode_card((await session.get_model_card()).card)
                if card.card_id == session.record.card_id:
                    if self._prepare is not None:
                        await self._prepare(card)
                    self._cards[card.card_id] = card
                    break
                reason = f"its card hashes to {card.card_id}, its record says {session.record.card_id}"
            except (grpc.aio.AioRpcError, msgspec.MsgspecError) as error:
                reason = str(error)
            log.warning("no model card from %s: %s", session.record.worker_id, reason)
            await asyncio.sleep(_CARD_RETRY_S)
        self._changed()

    def _changed(self) -> None:
        if self._listener is not None:
            self._listener.on_workers_changed()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _winner(count: Counter[tuple[bool, str]]) -> str:
    """Card id with the most votes, decode workers' before prefill workers'."""
    return max(count, key=lambda vote: (vote[0], count[vote], vote[1]))[1]
