"""The outermost ASGI layer: request id, API key, and one place where every exception becomes an answer."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.http.exchange import ClientLeft, Exchange
from router.metrics import RouterMetrics
from router.unforeseen import internal_error
from wire.errors import ErrorCode, SpliceError

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class KeyRing:
    """API keys, kept as hashes only. Every key is compared, so time tells nothing about which one was close."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def admits(self, authorization: bytes | None) -> bool:
        """`authorization`: the value of the header, `Bearer <key>`."""
        if not self._hashes:
            return True
        scheme, _, key = (authorization or b"").partition(b" ")
        offered = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(offered, known) for known in self._hashes]
        return scheme.lower() == b"bearer" and any(matches)

    def check(self, authorization: bytes | None) -> None:
        """Raises invalid_api_key."""
        if not self.admits(authorization):
            raise SpliceError(ErrorCode.INVALID_API_KEY, "a valid API key is needed: Authorization: Bearer <key>")


class FrontDoor:
    """Denies by default: only `OPEN_PATHS` are served without a key."""

    def __init__(self, app: ASGIApp, keys: KeyRing, draw_id: Callable[[], int], metrics: RouterMetrics) -> None:
        self._app = app
        self._keys = keys
        self._draw_id = draw_id
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._refuse_websocket(scope, receive, send)
            return
        request_id = self._request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._metrics.responses.labels(str(message["status"])).inc()
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        error: SpliceError
        try:
            if scope["path"] not in OPEN_PATHS:
                self._keys.check(dict(scope["headers"]).get(b"authorization"))
            await self._app(scope, receive, send_with_id)
            return
        except ClientLeft:
            self._metrics.disconnects.inc()
            return
        except SpliceError as raised:
            error = raised
        except HTTPException as raised:
            error = _from_http(raised.status_code, scope)
        except Exception as raised:
            log.exception("request %s failed", request_id)
            error = internal_error(raised)
        if not started:
            await Exchange(scope, receive, send_with_id).send_error(error)

    def _request_id(self, scope: Scope) -> str:
        """The client's own id is echoed if sane; it is never a key to anything."""
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        return given.decode() if _SANE_ID.fullmatch(given) else f"req-{self._draw_id():016x}"

    @staticmethod
    async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})


def _from_http(status: int, scope: Scope) -> SpliceError:
    method, path = scope["method"], scope["path"][:128]
    if status == 405:
        return SpliceError(ErrorCode.METHOD_NOT_ALLOWED, f"{method} is not allowed on {path}")
    if status == 404:
        return SpliceError(ErrorCode.NOT_FOUND, f"there is nothing at {path}")
    return SpliceError(ErrorCode.INVALID_REQUEST, f"{method} {path} was refused with status {status}")
