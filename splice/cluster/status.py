"""What a cluster is doing: from its registrations, its workers' own figures and the run directory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import grpc.aio
import msgspec

from membership.client import EtcdClient
from membership.keys import workers_prefix
from splice.cluster.run_dir import ClusterState
from wire.errors import SpliceError
from wire.v1 import worker_pb2, worker_pb2_grpc
from wire.worker_record import Role, WorkerRecord, decode_record

DEADLINE_S = 5.0


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    worker_id: str
    role: Role
    endpoint: str
    model: str
    incarnation: str
    """Sixteen hexadecimal digits: 64 bits do not survive every JSON reader as a number."""
    pid: int
    draining: bool
    answers: bool
    running: int = 0
    waiting: int = 0
    num_blocks: int = 0
    free_blocks: int = 0
    held_blocks: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_hit_tokens: int = 0
    kv_bytes_in: int = 0
    preemptions: int = 0
    copied_blocks: int = 0
    """Within the pool, for forks and partly shared prefixes."""
    swapped_out_blocks: int = 0
    """To host memory, when evicted."""
    swapped_in_blocks: int = 0
    longest_step_s: float = 0.0
    """Engine step, since start."""
    tactic_hits: int = 0
    """Choices among GPU kernels, looked up since start: measured ones."""
    tactic_misses: int = 0
    """And ones that were not."""
    tactics_skipped: int = 0
    """Left out because they failed when they were tried."""
    rss_bytes: int = 0


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    cluster: str
    etcd_endpoints: tuple[str, ...]
    etcd_error: str | None
    router_url: str | None
    ray_address: str | None
    living_processes: tuple[str, ...]
    workers: tuple[WorkerStatus, ...]


async def gather(cluster: str, endpoints: tuple[str, ...], state: ClusterState | None) -> ClusterStatus:
    """Never fails for a part that does not answer: that is part of the status."""
    workers: Sequence[WorkerStatus] = ()
    problem = None
    client = EtcdClient(endpoints)
    try:
        found = await client.list(workers_prefix(cluster), timeout_s=DEADLINE_S)
        records = sorted(
            (decode_record(pair.value) for pair in found.entries), key=lambda each: (each.role, each.worker_id)
        )
        workers = await asyncio.gather(*(_ask(record) for record in records))
    except (SpliceError, msgspec.ValidationError) as error:
        problem = str(error)
    finally:
        await client.close()
    return ClusterStatus(
        cluster=cluster,
        etcd_endpoints=endpoints,
        etcd_error=problem,
        router_url=f"http://{state.host}:{state.http_port}" if state is not None and state.http_port else None,
        ray_address=state.ray_address if state is not None else None,
        living_processes=tuple(f"{each.name} {each.pid}" for each in state.living()) if state is not None else (),
        workers=tuple(workers),
    )


async def _ask(record: WorkerRecord) -> WorkerStatus:
    known = WorkerStatus(
        worker_id=record.worker_id,
        role=record.role,
        endpoint=record.endpoint,
        model=record.model,
        incarnation=f"{record.incarnation:016x}",
        pid=record.pid,
        draining=record.draining,
        answers=False,
        num_blocks=record.num_blocks,
    )
    try:
        async with grpc.aio.insecure_channel(record.endpoint) as channel:
            stub = worker_pb2_grpc.WorkerStub(channel)
            stats = await stub.GetStats(worker_pb2.GetStatsRequest(), timeout=DEADLINE_S)
    except grpc.aio.AioRpcError:
        return known
    return msgspec.structs.replace(
        known,
        answers=stats.incarnation == record.incarnation,
        draining=stats.draining,
        running=stats.running,
        waiting=stats.waiting,
        free_blocks=stats.free_blocks,
        held_blocks=stats.held_blocks,
        prompt_tokens=stats.prompt_tokens,
        generated_tokens=stats.generated_tokens,
        prefix_hit_tokens=stats.prefix_hit_tokens,
        kv_bytes_in=stats.kv_bytes_in,
        preemptions=stats.preemptions,
        copied_blocks=stats.copied_blocks,
        swapped_out_blocks=stats.swapped_out_blocks,
        swapped_in_blocks=stats.swapped_in_blocks,
        longest_step_s=stats.longest_step_s,
        tactic_hits=stats.tactics.hits,
        tactic_misses=stats.tactics.misses,
        tactics_skipped=stats.tactics.skipped,
        rss_bytes=stats.rss_bytes,
    )
