"""The routes, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from router.http.chat import ChatEndpoint
from router.http.completions import CompletionsEndpoint
from router.http.exchange import Exchange
from router.http.frontdoor import FrontDoor, KeyRing
from router.service import InferenceService
from wire.errors import ErrorCode, SpliceError

_Handler = Callable[[Exchange], Awaitable[None]]
_METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def make_app(service: InferenceService, keys: KeyRing) -> ASGIApp:
    """Pure ASGI; paths are matched exactly."""
    endpoints = _Pages(service)
    router = Router(
        [
            Route("/v1/chat/completions", ChatEndpoint(service), methods=["POST"]),
            Route("/v1/completions", CompletionsEndpoint(service), methods=["POST"]),
            Route("/v1/models", _Page(endpoints.models), methods=["GET"]),
            Route("/v1/models/{model:path}", _Page(endpoints.model), methods=["GET"]),
            Route("/health", _Page(endpoints.health), methods=["GET"]),
            Route("/ready", _Page(endpoints.ready), methods=["GET"]),
            Route("/metrics", _Page(endpoints.metrics), methods=["GET"]),
        ],
        redirect_slashes=False,
    )

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # makes Starlette raise 404 and 405 instead of answering in plain text
        await router(scope, receive, send)

    return FrontDoor(routed, keys, service.randomness.draw_id, service.metrics)


class _Page:
    """A handler of one exchange as an ASGI app: Starlette wraps bare functions in its own request objects."""

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handler(Exchange(scope, receive, send))


class _Pages:
    """Everything that answers at once."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def models(self, exchange: Exchange) -> None:
        await exchange.send_json({"object": "list", "data": [self._model(name) for name in self._names()]})

    async def model(self, exchange: Exchange) -> None:
        name: str = exchange.scope["path_params"]["model"]
        if name not in self._names():
            raise SpliceError(ErrorCode.MODEL_NOT_FOUND, f"no model {name[:128]!r} is served", param="model")
        await exchange.send_json(self._model(name))

    async def health(self, exchange: Exchange) -> None:
        """Live means that the event loop gets around; it never depends on workers or etcd."""
        status = self._service.pulse.status()
        await exchange.send_json(status, 200 if status["status"] == "ok" else 503)

    async def ready(self, exchange: Exchange) -> None:
        readiness = self._service.readiness()
        await exchange.send_json(
            {
                "ready": readiness.ready,
                "reason": readiness.reason or None,
                "workers": {"prefill": readiness.prefill_workers, "decode": readiness.decode_workers},
                "models": self._names(),
            },
            200 if readiness.ready else 503,
        )

    async def metrics(self, exchange: Exchange) -> None:
        self._service.refresh_gauges()
        await exchange.send_bytes(200, self._service.metrics.expose(), _METRICS_TYPE)

    def _names(self) -> list[str]:
        return sorted(self._service.fleet.models())

    def _model(self, name: str) -> dict[str, object]:
        limit = self._service.context_limit(self._service.model_text(name))
        return {
            "id": name,
            "object": "model",
            "created": self._service.started,
            "owned_by": "splice",
            "max_model_len": limit,
        }
