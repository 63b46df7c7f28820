"""One worker, assembled: model, memory, engine thread, role, gRPC server, registration."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import grpc.aio
import structlog
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvtransfer.handoff import WorkerIdentity
from kvtransfer.host import host_id, pid_space
from kvtransfer.thread_priority import give_way
from membership.client import EtcdClient
from membership.registration import Registration
from wire.errors import ErrorCode, SpliceError
from wire.kv_layout import compat_id
from wire.v1 import kv_pb2, worker_pb2, worker_pb2_grpc
from wire.worker_record import WorkerRecord
from worker.answer_texts import AnswerTexts
from worker.body import Body, build_body
from worker.engine_loop import EngineLoop
from worker.role import Role, RoleParts
from worker.service import WorkerService
from worker.settings import WorkerSettings
from worker.token_listener import TokenListener

SWITCH_INTERVAL_S = 0.0005
"""The interpreter's default of 5 ms would show as a tail of the inter-token latency."""
ENGINE_STOP_S = 10.0
SERVER_GRACE_S = 1.0
MAX_MESSAGE_BYTES = 16 << 20

log = structlog.get_logger()

BuildRole = Callable[[RoleParts], Role]


async def serve_worker(
    settings: WorkerSettings,
    build_role: BuildRole,
    stop: asyncio.Event,
    on_ready: Callable[[WorkerRecord], None],
) -> None:
    """Runs one worker until `stop` is set, then drains and leaves.

    `on_ready` is called once requests are accepted. Raises SpliceError for a model or setting that cannot work.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _refuse_open_faults(settings)
    server, port = _bind(settings)
    body = await _build(settings)
    async with AsyncExitStack() as cleanup:
        cleanup.callback(body.place.pool.close)
        card = body.loaded.card
        loop = EngineLoop(body.engine, on_dead=lambda _: os._exit(70), nice=settings.nice)
        identity = _identity(settings, body)
        role = build_role(
            RoleParts(
                body.engine,
                AnswerTexts(card),
                body.place,
                identity,
                settings,
                loop.post,
                time.monotonic,
                body.loaded.tactic_counts,
            )
        )
        record = _record(settings, body, identity, f"{settings.host}:{port}")
        listener = TokenListener(settings.host)
        cleanup.push_async_callback(listener.close)
        service = WorkerService(role, loop, listener, record, card)
        worker_pb2_grpc.add_WorkerServicer_to_server(service, server)
        role.add_to_server(server)
        health_service = await _add_health(server)
        await role.start()
        cleanup.push_async_callback(role.close)
        loop.start(role)
        cleanup.callback(_end_engine, loop)
        listener.start()
        await server.start()
        cleanup.push_async_callback(server.stop, SERVER_GRACE_S)
        registration = await _register(settings, record, cleanup)
        log.info("worker_ready", worker=record.worker_id, endpoint=record.endpoint, blocks=record.num_blocks)
        on_ready(record)
        await _until(stop, service, registration)
        await health_service.enter_graceful_shutdown()
        await service.drain(settings.drain_timeout_s)


def _end_engine(loop: EngineLoop) -> None:
    """Memory is taken from nobody who may still compute in it, and what waits for a device that hangs waits for ever:
    a thread that does not end takes the process along."""
    if not loop.stop(ENGINE_STOP_S):
        log.error("engine_stuck", waited_s=ENGINE_STOP_S, next="this process ends")
        os._exit(70)


def run_worker(settings: WorkerSettings, build_role: BuildRole, on_ready: Callable[[WorkerRecord], None]) -> None:
    """Runs one worker in this process until SIGTERM or SIGINT; a second signal ends it at once."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _stop_or_die, stop)
        await serve_worker(settings, build_role, stop, settled(on_ready))

    asyncio.run(main())


def settled(on_ready: Callable[[WorkerRecord], None]) -> Callable[[WorkerRecord], None]:
    """For processes that do nothing but serve: what exists when a worker is ready stays, and is no garbage.

    Looking through all of it again and again for garbage takes 20 ms and more, in the midst of answers.
    """

    def ready(record: WorkerRecord) -> None:
        gc.freeze()
        on_ready(record)

    return ready


_SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.so_reuseport", 0),  # a port in use must be an error, not a second listener
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)


def _stop_or_die(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(130)
    stop.set()


def _refuse_open_faults(settings: WorkerSettings) -> None:
    if settings.faults and settings.host not in ("127.0.0.1", "localhost", "::1"):
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"fault points are for tests on loopback, but host is {settings.host}; drop --fault or bind 127.0.0.1",
            param="faults",
        )


def _bind(settings: WorkerSettings) -> tuple[grpc.aio.Server, int]:
    """A server that listens nowhere yet, and the port that is its own: a taken one is found before weights are read."""
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    try:
        return server, server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"cannot listen on {settings.host}:{settings.port}: the port is in use or the address is not this "
            "machine's; choose another, or port 0 for a free one",
            param="port",
        ) from error


async def _build(settings: WorkerSettings) -> Body:
    """On a thread of its own, whose priority those inherit that will compute."""
    with ThreadPoolExecutor(1, "build", initializer=give_way, initargs=(settings.nice,)) as builder:
        return await asyncio.get_running_loop().run_in_executor(builder, build_body, settings)


def _identity(settings: WorkerSettings, body: Body) -> WorkerIdentity:
    return WorkerIdentity(
        worker_id=settings.worker_id or f"{settings.role}-{body.incarnation & 0xFFFFFFFF:08x}",
        incarnation=body.incarnation,
        compat_id=compat_id(body.layout, body.loaded.card.model_digest, body.loaded.numerics_id),
        host_id=host_id(),
    )


def _record(settings: WorkerSettings, body: Body, identity: WorkerIdentity, endpoint: str) -> WorkerRecord:
    card = body.loaded.card
    return WorkerRecord(
        worker_id=identity.worker_id,
        incarnation=identity.incarnation,
        role=settings.role,
        endpoint=endpoint,
        model=card.name,
        card_id=card.card_id,
        compat_id=identity.compat_id,
        layout=body.layout,
        numerics_id=body.loaded.numerics_id,
        num_blocks=body.place.pool.num_blocks,
        max_num_seqs=settings.max_num_seqs,
        max_model_len=card.max_model_len,
        host_id=pid_space(),
        pid=os.getpid(),
    )


async def _add_health(server: grpc.aio.Server) -> health_aio.HealthServicer:
    servicer = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = [
        worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name,
        kv_pb2.DESCRIPTOR.services_by_name["KvSource"].full_name,
    ]
    for name in ("", names[0]):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return servicer


async def _register(settings: WorkerSettings, record: WorkerRecord, cleanup: AsyncExitStack) -> Registration | None:
    if not settings.etcd_endpoints:
        return None
    client = EtcdClient(settings.etcd_endpoints)
    cleanup.push_async_callback(client.close)
    registration = Registration(
        client,
        record,
        cluster=settings.cluster,
        ttl_s=settings.registration_ttl_s,
        rng=random.Random(record.incarnation),  # noqa: S311 (jitter, not a secret)
    )
    await registration.start()
    cleanup.push_async_callback(registration.close)
    return registration


async def _until(stop: asyncio.Event, service: WorkerService, registration: Registration | None) -> None:
    """Returns when `stop` is set; a Drain call meanwhile is written into the registration."""
    stopping = asyncio.create_task(stop.wait())
    draining = asyncio.create_task(service.drain_requested.wait())
    await asyncio.wait((stopping, draining), return_when=asyncio.FIRST_COMPLETED)
    if registration is not None:
        await registration.update_draining()
    await stopping
    draining.cancel()
