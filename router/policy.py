"""Which pair serves a request: the cheapest compatible one. Pure; ties fall in a seeded order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from router.events import NoPair, Picked, WorkerKey
from wire.errors import ErrorCode, SpliceError
from wire.worker_record import WorkerRecord

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A live worker as the router sees it: its record, its last heartbeat, and what this router sent since."""

    record: WorkerRecord
    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    queued_prefill_tokens: int = 0
    draining: bool = False

    @property
    def key(self) -> WorkerKey:
        return (self.record.worker_id, self.record.incarnation)

    @property
    def available(self) -> bool:
        return not (self.draining or self.record.draining)


@dataclass(frozen=True, slots=True)
class CostWeights:
    """Everything is expressed in tokens of prompt work, so that the terms can be added."""

    transfer: float = 0.05
    """Moving one token's KV against computing it."""
    decode_load: float = 512.0
    """A decode worker with all its sequences busy."""
    kv_pressure: float = 2048.0
    """A request that takes all the memory left on the decode worker."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be placed. `cached_tokens`: tokens of this prompt believed to be in a worker's prefix cache."""

    model: str
    num_tokens: int
    cached_tokens: Mapping[WorkerKey, int]
    tie_seed: int = 0


def pick(
    demand: Demand,
    workers: Iterable[WorkerLoad],
    excluded: Collection[WorkerKey] = (),
    weights: CostWeights = CostWeights(),
) -> Picked | NoPair:
    """The compatible pair of least cost; decode alone when no compatible prefill worker is available."""
    serving = [worker for worker in workers if worker.record.model == demand.model and worker.key not in excluded]
    decoders = [worker for worker in serving if worker.record.role == "decode" and worker.available]
    prefillers = [worker for worker in serving if worker.record.role == "prefill" and worker.available]
    if not decoders:
        return NoPair(_why_nobody(serving, demand.model))
    tie = _tie_breaker(demand.tie_seed)
    best: tuple[tuple[bool, float, bytes], Picked] | None = None
    for decode in decoders:
        partners = [each for each in prefillers if each.record.compat_id == decode.record.compat_id]
        for prefill in (*partners, *(() if partners else (None,))):
            cost = decode_cost(demand, decode, weights)
            cost += prefill_cost(demand, decode if prefill is None else prefill)
            order = (prefill is None, cost, tie(decode) + (tie(prefill) if prefill is not None else b""))
            if best is None or order < best[0]:
                best = (order, Picked(decode.key, prefill.key if prefill is not None else None))
    assert best is not None  # noqa: S101 - every decoder adds at least one candidate
    return best[1]


def prefill_cost(demand: Demand, worker: WorkerLoad) -> float:
    """Prompt tokens to be computed before this request's first token appears."""
    cached = min(demand.cached_tokens.get(worker.key, 0), demand.num_tokens)
    return float(worker.queued_prefill_tokens + demand.num_tokens - cached)


def decode_cost(demand: Demand, worker: WorkerLoad, weights: CostWeights) -> float:
    """KV to be moved, company in the batch, and how much of the free memory the request takes."""
    record = worker.record
    uncached = demand.num_tokens - min(demand.cached_tokens.get(worker.key, 0), demand.num_tokens)
    load = (worker.running + worker.waiting) / max(record.max_num_seqs, 1)
    needed_blocks = uncached // record.layout.block_tokens + 1
    pressure = min(needed_blocks / max(worker.free_blocks, 1), 2.0)
    return weights.transfer * uncached + weights.decode_load * load + weights.kv_pressure * pressure


def _why_nobody(serving: Iterable[WorkerLoad], model: str) -> SpliceError:
    if any(worker.record.role == "decode" for worker in serving):
        message = f"every decode worker of {model!r} is draining; try again"
        return SpliceError(ErrorCode.DRAINING, message, retry_after_s=RETRY_AFTER_S)
    message = f"no decode worker of {model!r} is alive; start one or try again"
    return SpliceError(ErrorCode.NO_DECODE_WORKERS, message, retry_after_s=RETRY_AFTER_S)


def _tie_breaker(seed: int) -> Callable[[WorkerLoad], bytes]:
    prefix = (seed % 2**64).to_bytes(8, "little")
    return lambda worker: hashlib.blake2b(prefix + worker.record.worker_id.encode(), digest_size=8).digest()
