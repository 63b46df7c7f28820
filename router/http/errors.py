"""Errors as OpenAI clients read them."""

from __future__ import annotations

from typing import Any

import msgspec

from wire.errors import ErrorCode, SpliceError

_RETRY_HELPS = frozenset(
    {
        ErrorCode.OVERLOADED,
        ErrorCode.DRAINING,
        ErrorCode.RATE_LIMIT_EXCEEDED,
        ErrorCode.NO_DECODE_WORKERS,
        ErrorCode.NO_PREFILL_WORKERS,
        ErrorCode.NO_COMPATIBLE_PAIR,
    }
)


def error_object(error: SpliceError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    return {
        "error": {
            "message": error.message,
            "type": error.error_class.openai_type,
            "param": error.param,
            "code": error.code.value,
        }
    }


def error_body(error: SpliceError) -> bytes:
    return msgspec.json.encode(error_object(error))


def error_headers(error: SpliceError) -> list[tuple[bytes, bytes]]:
    """The router has retried already; a client should only where time can help."""
    headers = [(b"x-should-retry", b"true" if error.code in _RETRY_HELPS else b"false")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(round(error.retry_after_s), 1)).encode()))
    return headers
