"""The gRPC server around the Inference service: port, API key, health, reflection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from router.http.frontdoor import KeyRing
from router.rpc.inference import InferenceServicer, abort
from router.service import InferenceService
from router.settings import RouterSettings
from wire.errors import ErrorCode, SpliceError
from wire.v1 import inference_pb2
from wire.v1 import inference_pb2_grpc as rpc

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
_HEALTH_METHODS = f"/{health.SERVICE_NAME}/"
_HEALTH_PERIOD_S = 0.2


@contextlib.asynccontextmanager
async def grpc_server(service: InferenceService, keys: KeyRing, settings: RouterSettings) -> AsyncIterator[int]:
    """Serves while open; yields the bound port. Raises bad_setting when the port is taken."""
    server = grpc.aio.server(
        interceptors=(_KeyInterceptor(keys),),
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ),
    )
    rpc.add_InferenceServicer_to_server(InferenceServicer(service), server)
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # not in its stub
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{address}:{settings.grpc_port}")
    except RuntimeError as error:
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"cannot listen on {settings.host}:{settings.grpc_port}; choose another port or 0",
            param="grpc_port",
        ) from error
    await server.start()
    publisher = asyncio.create_task(_publish_health(service, health_servicer), name="grpc health")
    try:
        yield port
    finally:
        publisher.cancel()
        await server.stop(settings.drain_timeout_s)


async def _publish_health(service: InferenceService, servicer: Any) -> None:
    """The server itself is live; the Inference service is serving while a request would find workers."""
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    while True:
        ready = service.readiness().ready
        await servicer.set(
            INFERENCE, health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        await asyncio.sleep(_HEALTH_PERIOD_S)


class _KeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stub alone
    """Denies by default: every method but health needs the key, in metadata `authorization: Bearer <key>`."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        offered = dict(handler_call_details.invocation_metadata).get("authorization", "")
        raw = offered if isinstance(offered, bytes) else offered.encode()
        if handler_call_details.method.startswith(_HEALTH_METHODS) or self._keys.admits(raw):
            return await continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    async def _refuse(self, _: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            self._keys.check(None)
        except SpliceError as error:
            await abort(context, error)
        return b""
