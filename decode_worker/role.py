"""Decode on the engine thread: reservations meet sources, fetched KV becomes running requests."""

from __future__ import annotations

from dataclasses import dataclass

import grpc.aio

from engine.scheduling.request import RequestKey, RequestKind
from engine.steps.step_output import Reservation, StepOutput
from kvtransfer.consumer import KvConsumer
from kvtransfer.faults import FaultPlan
from kvtransfer.handoff import HandoffStats, KvFinalData, SourceAddress
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason
from wire.v1 import worker_pb2
from worker.role import HandoffCounters, Role, RoleParts
from worker.session import RouterSession


@dataclass(slots=True)
class _Intake:
    """A request whose KV comes from elsewhere, until it runs: memory and source may arrive in either order."""

    num_tokens: int
    reservation: Reservation | None = None
    source: SourceAddress | None = None
    fetching: bool = False


class DecodeRole(Role):
    """Owns the intake of every reserved request; running requests belong to the engine alone."""

    kinds = frozenset({RequestKind.RESERVE, RequestKind.GENERATE})

    def __init__(self, parts: RoleParts) -> None:
        super().__init__(parts)
        self._intake: dict[RequestKey, _Intake] = {}
        self._consumer = KvConsumer(
            parts.place.pool,
            parts.identity,
            transports=parts.settings.kv_transports,
            on_ready=lambda key, final, stats: parts.post(lambda: self._fetched(key, final, stats)),
            on_failed=lambda key, error, blamed: parts.post(lambda: self._fetch_failed(key, error, blamed)),
            on_drained=lambda key: parts.post(lambda: self.engine.drained(key)),
            faults=FaultPlan.parse(parts.settings.faults),
            push=parts.settings.kv_push,
        )

    def _taken(self, kind: RequestKind, key: RequestKey, message: worker_pb2.Submit) -> None:
        if kind is RequestKind.RESERVE:
            self._intake[key] = _Intake(len(message.tokens))

    def attach(self, message: worker_pb2.Attach, session: RouterSession) -> None:
        intake = self._intake.get((message.request, message.attempt))
        if intake is None or intake.source is not None:
            return  # cancelled meanwhile, or a repeated message
        intake.source = SourceAddress(
            worker_id=message.source_worker,
            incarnation=message.source_incarnation,
            endpoint=message.source_endpoint,
        )
        self._fetch_if_possible((message.request, message.attempt), intake)

    def on_output(self, output: StepOutput) -> None:
        for reservation in output.reserved:
            self._reserved(reservation)
        super().on_output(output)
        ended = [row.key for row in output.rows if row.finish is not FinishReason.NONE]
        ended += [found.key for found in output.beams]
        for key in (*ended, *(key for key, _ in output.failed)):
            self._forget(key)

    def handoff_counters(self) -> HandoffCounters:
        stats = self._consumer.stats
        return HandoffCounters(
            kv_bytes_in=stats.kv_bytes_in,
            kv_blocks_in=stats.kv_blocks_in,
            digest_mismatches=stats.digest_mismatches,
            transport_fallbacks=stats.transport_fallbacks,
            kv_blocks_pushed=stats.blocks_pushed,
        )

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Decode pulls; it serves no KV of its own."""

    async def start(self) -> None:
        await self._consumer.start()

    async def close(self) -> None:
        await self._consumer.close()

    def _reserved(self, reservation: Reservation) -> None:
        tracked = self.table.get(reservation.key)
        intake = self._intake.get(reservation.key)
        if tracked is None or intake is None:
            return
        intake.reservation = reservation
        tracked.session.send(
            reserved=worker_pb2.Reserved(
                request=reservation.key[0],
                attempt=reservation.key[1],
                cached_tokens=reservation.cached_tokens,
                queue_s=self._clock() - tracked.received_s,
            )
        )
        self._fetch_if_possible(reservation.key, intake)

    def _fetch_if_possible(self, key: RequestKey, intake: _Intake) -> None:
        tracked = self.table.get(key)
        if intake.reservation is None or intake.source is None or tracked is None:
            return
        intake.fetching = True
        with self._only(key):
            self._consumer.fetch(
                key,
                intake.source,
                intake.reservation.block_ids,
                intake.reservation.skip_blocks,
                tracked.deadline_s - self._clock(),
                expect_tokens=intake.num_tokens,
            )

    def _fetched(self, key: RequestKey, final: KvFinalData, stats: HandoffStats) -> None:
        tracked = self.table.get(key)
        if tracked is None or self._intake.pop(key, None) is None:
            return  # cancelled while the last copy ended; its memory drains by itself
        tracked.session.send(
            handoff=worker_pb2.HandoffReport(
                request=key[0],
                attempt=key[1],
                transport=stats.transport,
                kv_bytes=stats.kv_bytes,
                kv_blocks=stats.kv_blocks,
                copy_s=stats.copy_s,
                exposed_s=stats.exposed_s,
                transport_fallbacks=stats.transport_fallbacks,
                blocks_refetched=stats.blocks_refetched,
                blocks_pushed=stats.blocks_pushed,
            )
        )
        if final.finished:
            self.engine.abort(key)
            self.table.remove(key)
            return
        with self._only(key):
            self.engine.activate(key, list(final.first_tokens), final.logprobs)

    def _fetch_failed(self, key: RequestKey, error: SpliceError, blamed: str | None) -> None:
        if self._intake.pop(key, None) is None:
            return
        self.engine.abort(key, draining=True)
        if error.code is ErrorCode.CANCELLED:
            self.table.remove(key)
        else:
            self.fail(key, error, retryable=True, blamed=blamed)

    def _end(self, key: RequestKey) -> None:
        fetching = self._forget(key)
        self.engine.abort(key, draining=fetching)
        if fetching:
            self._consumer.cancel(key, "the request was cancelled")

    def _forget(self, key: RequestKey) -> bool:
        """Drops the intake; True if copies into its memory may be outstanding."""
        intake = self._intake.pop(key, None)
        return intake is not None and intake.fetching
