"""How busy an engine is, as plain data for heartbeats and status."""

from __future__ import annotations

from dataclasses import dataclass

from engine.blocks.block_pool import BlockState
from engine.scheduling.request import RequestKey, RequestStatus
from engine.scheduling.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A moment's view. `free_blocks` counts evictable ones."""

    running: int
    waiting: int
    reserved: int
    free_blocks: int
    held_blocks: int
    draining_blocks: int
    queued_prefill_tokens: int
    """Tokens of waiting and running requests still to be computed, reservations (computed elsewhere) left out."""


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """Where one request stands."""

    key: RequestKey
    status: RequestStatus
    num_tokens: int
    num_computed_tokens: int


def measure_load(scheduler: Scheduler) -> EngineLoad:
    """Reads the scheduler; costs time in proportion to its requests."""
    pool = scheduler.pool
    requests = scheduler.requests.values()
    return EngineLoad(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        reserved=sum(1 for request in requests if request.status is RequestStatus.RESERVED),
        free_blocks=pool.num_free,
        held_blocks=pool.count(BlockState.HELD),
        draining_blocks=pool.count(BlockState.DRAINING),
        queued_prefill_tokens=sum(
            request.num_tokens - request.num_computed_tokens
            for request in (*scheduler.waiting, *scheduler.running)
            if not request.is_computed_elsewhere
        ),
    )


def summarise_requests(scheduler: Scheduler, limit: int) -> list[RequestSummary]:
    """The `limit` first of the requests here, in order of arrival."""
    first = sorted(scheduler.requests.values(), key=lambda request: request.arrival)[:limit]
    return [RequestSummary(r.key, r.status, r.num_tokens, r.num_computed_tokens) for r in first]
