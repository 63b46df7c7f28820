"""Prefill on the engine thread: step outputs become announcements, ended leases become free blocks."""

from __future__ import annotations

import grpc.aio

from engine.scheduling.request import RequestKey, RequestKind
from engine.steps.step_output import ComputedBlocks, StepOutput, TokenRow
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.faults import FaultPlan
from kvtransfer.handoff import KvFinalData
from kvtransfer.source import KvSource
from prefill_worker.push_port import SourcePushPort
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason
from worker.role import HandoffCounters, Role, RoleParts


class PrefillRole(Role):
    """A request lives here from `prefill` until its lease ends: pulled, cancelled or expired."""

    kinds = frozenset({RequestKind.PREFILL})

    def __init__(self, parts: RoleParts) -> None:
        super().__init__(parts)
        self._held: set[RequestKey] = set()
        self._written = parts.place.written
        self._source = KvSource(
            parts.place.pool,
            parts.identity,
            lease_ttl_s=parts.settings.lease_ttl_s,
            transports=parts.settings.kv_transports,
            on_release=lambda key, reason: parts.post(lambda: self._released(key)),
            host=parts.settings.host,
            faults=FaultPlan.parse(parts.settings.faults),
            push=_pushes(parts),
        )
        if self._source.pushes:
            parts.engine.push_through(SourcePushPort(self._source))

    def on_output(self, output: StepOutput) -> None:
        """Announces before the first tokens are sent: decode starts its last fetch while the token travels."""
        rows = {row.key: row for row in output.rows}
        for blocks in output.computed:
            row = rows.get(blocks.key)
            final = _final(row, blocks) if blocks.is_last and row is not None else None
            with self._only(blocks.key):
                what = (blocks.key, blocks.first_block, blocks.block_ids, blocks.num_tokens)
                self._source.announce(*what, final, self._written, blocks.pushed_from)
                if final is not None:
                    self._held.add(blocks.key)
        super().on_output(output)
        for row in output.rows:
            if row.finish != FinishReason.NONE:
                # The one failure that decode keeps to itself: the router has the whole answer, and cancels there.
                self._source.fail(row.key, SpliceError(ErrorCode.CANCELLED, "the answer ended on its first token"))
        for key, error in output.failed:
            self._source.fail(key, error)

    def handoff_counters(self) -> HandoffCounters:
        stats = self._source.stats
        return HandoffCounters(leases_active=stats.leases_active, leases_expired=stats.leases_expired)

    def add_to_server(self, server: grpc.aio.Server) -> None:
        self._source.add_to_server(server)

    async def start(self) -> None:
        await self._source.start()

    async def close(self) -> None:
        await self._source.close()

    def _end(self, key: RequestKey) -> None:
        # A held block may be on its way through a socket: only the lease knows when it may be reused.
        if key not in self._held:
            self.engine.abort(key)
        # Decode may not have been told: it reports this to its router, which ignores it if it cancelled both.
        self._source.fail(key, SpliceError(ErrorCode.KV_TRANSFER_FAILED, "the request was given up at its source"))

    def _released(self, key: RequestKey) -> None:
        self.engine.release_hold(key)
        if key in self._held:
            self._held.discard(key)
            self.table.remove(key)


def _pushes(parts: RoleParts) -> bool:
    """Raises SpliceError (bad_setting) where it was asked for and cannot be."""
    wanted = parts.settings.kv_push
    if wanted == "on" and not parts.engine.can_push:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            "kv_push is on, and this model's rows are stored by a CPU, which reaches no peer's memory: expected a "
            "model on a GPU, or kv_push auto",
            param="kv_push",
        )
    return wanted != "off" and parts.engine.can_push and isinstance(parts.place.pool, DevicePoolMemory)


def _final(row: TokenRow, blocks: ComputedBlocks) -> KvFinalData:
    return KvFinalData(
        first_tokens=row.tokens,
        first_seq=row.seq,
        logprobs=row.logprobs or (),
        finished=row.finish != FinishReason.NONE,
        computed_tokens=blocks.num_tokens - row.cached_tokens,
        excess_s=blocks.excess_s,
    )
