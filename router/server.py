"""Puts a router together and serves HTTP and gRPC on one event loop until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import datetime
from typing import Any

import uvicorn

from router.discovery import Fleet
from router.dispatch import Dispatcher
from router.http.app import make_app
from router.http.frontdoor import KeyRing
from router.lifecycle import LifecycleLimits
from router.membership_feed import follow_membership
from router.metrics import RouterMetrics
from router.rpc.server import grpc_server
from router.service import InferenceService, Randomness
from router.session import SessionTiming
from router.settings import BoundPorts, RouterSettings
from wire.errors import ErrorCode, SpliceError

_BACKLOG = 2048


async def serve(
    settings: RouterSettings, stop: asyncio.Event, on_bound: Callable[[BoundPorts], None] = lambda _: None
) -> None:
    """Runs until `stop` is set, then lets running requests end within `drain_timeout_s`.

    `on_bound` is called once both ports accept connections. Raises bad_setting when a port is taken.
    """
    keys = KeyRing(settings.api_keys)
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(_service(settings))
        listener = stack.enter_context(_listen(settings.host, settings.http_port))
        grpc_port = await stack.enter_async_context(grpc_server(service, keys, settings))
        http = _HttpServer(service, keys, settings)
        http_task = asyncio.create_task(http.serve(sockets=[listener]), name="http server")
        stack.push_async_callback(http.end, http_task)
        await _first_of(http.accepting.wait(), http_task)
        on_bound(BoundPorts(settings.host, listener.getsockname()[1], grpc_port))
        await _first_of(stop.wait(), http_task)
        service.draining = True


async def _first_of(event: Coroutine[Any, Any, object], server: asyncio.Task[None]) -> None:
    """Waits for the event, but no longer than the server lives."""
    waiting = asyncio.create_task(event)
    await asyncio.wait([waiting, server], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


@contextlib.asynccontextmanager
async def _service(settings: RouterSettings) -> AsyncIterator[InferenceService]:
    timing = SessionTiming(heartbeat_timeout_s=settings.heartbeat_timeout_s, stall_timeout_s=settings.stall_timeout_s)
    incarnation = secrets.randbits(64) | 1
    fleet = Fleet(f"router-{incarnation:016x}", incarnation, timing)
    metrics = RouterMetrics()
    limits = LifecycleLimits(
        max_attempts=settings.max_attempts,
        no_worker_grace_s=settings.no_worker_grace_s,
        max_local_prefill_tokens=settings.max_local_prefill_tokens,
    )
    randomness = Randomness(draw_seed=_seed_source(settings.default_seed), draw_id=lambda: secrets.randbits(64))
    dispatcher = Dispatcher(fleet, limits, metrics, randomness.draw_id)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(fleet.close)
        view_age_s = await stack.enter_async_context(follow_membership(settings, fleet))
        service = InferenceService(
            settings,
            fleet=fleet,
            dispatcher=dispatcher,
            metrics=metrics,
            randomness=randomness,
            now=_now,
            view_age_s=view_age_s,
        )
        fleet.prepare_with(service.prepare)
        pulse = asyncio.create_task(service.pulse.run(), name="pulse")
        stack.callback(pulse.cancel)
        yield service


def _seed_source(fixed: int | None) -> Callable[[], int]:
    if fixed is None:
        return lambda: secrets.randbits(64)
    return lambda: fixed


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: a token must not wait for the acknowledgement of the one before.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"cannot listen on {host}:{port}: {error.strerror}; choose another port or 0",
                param="http_port",
            ) from error
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        yield listener


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: whoever called `serve` decides when to stop."""

    def __init__(self, service: InferenceService, keys: KeyRing, settings: RouterSettings) -> None:
        self.accepting = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                make_app(service, keys),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=max(round(settings.drain_timeout_s), 1),
                h11_max_incomplete_event_size=64 * 1024,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    async def end(self, task: asyncio.Task[None]) -> None:
        self.should_exit = True
        await task


def _now() -> datetime:
    return datetime.now().astimezone()
