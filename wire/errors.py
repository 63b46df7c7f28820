"""One error type and one table of codes, the same over HTTP, gRPC and in logs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """How a code looks from outside. `grpc_status` is a name from grpc.StatusCode."""

    http_status: int
    grpc_status: str
    openai_type: str


_INVALID = ErrorClass(400, "INVALID_ARGUMENT", "invalid_request_error")
_UNAVAILABLE = ErrorClass(503, "UNAVAILABLE", "service_unavailable")
_INTERNAL = ErrorClass(500, "INTERNAL", "server_error")
_PRECONDITION = ErrorClass(500, "FAILED_PRECONDITION", "server_error")


class ErrorCode(str, Enum):
    """Why a request failed; the value is what clients see as `error.code`."""

    INVALID_REQUEST = "invalid_request"
    UNKNOWN_FIELD = "unknown_field"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_API_KEY = "invalid_api_key"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TOO_LARGE = "request_too_large"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    CANCELLED = "cancelled"
    INTERNAL_ERROR = "internal_error"
    OVERLOADED = "overloaded"
    NO_PREFILL_WORKERS = "no_prefill_workers"
    NO_DECODE_WORKERS = "no_decode_workers"
    NO_COMPATIBLE_PAIR = "no_compatible_pair"
    DRAINING = "draining"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    # Between workers and router only; a client sees these as internal_error if every retry failed.
    KV_TRANSFER_FAILED = "kv_transfer_failed"
    KV_DIGEST_MISMATCH = "kv_digest_mismatch"
    INCARNATION_MISMATCH = "incarnation_mismatch"
    LAYOUT_MISMATCH = "layout_mismatch"
    WORKER_LOST = "worker_lost"
    # At start-up and on the command line only.
    BAD_MODEL_FILE = "bad_model_file"
    BAD_SETTING = "bad_setting"
    MISSING_PART = "missing_part"


ERROR_CLASSES: dict[ErrorCode, ErrorClass] = {
    ErrorCode.INVALID_REQUEST: _INVALID,
    ErrorCode.UNKNOWN_FIELD: _INVALID,
    ErrorCode.UNSUPPORTED_PARAMETER: _INVALID,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: _INVALID,
    ErrorCode.INVALID_API_KEY: ErrorClass(401, "UNAUTHENTICATED", "authentication_error"),
    ErrorCode.MODEL_NOT_FOUND: ErrorClass(404, "NOT_FOUND", "invalid_request_error"),
    ErrorCode.NOT_FOUND: ErrorClass(404, "NOT_FOUND", "invalid_request_error"),
    ErrorCode.METHOD_NOT_ALLOWED: ErrorClass(405, "UNIMPLEMENTED", "invalid_request_error"),
    ErrorCode.REQUEST_TOO_LARGE: ErrorClass(413, "RESOURCE_EXHAUSTED", "invalid_request_error"),
    ErrorCode.RATE_LIMIT_EXCEEDED: ErrorClass(429, "RESOURCE_EXHAUSTED", "rate_limit_error"),
    ErrorCode.CANCELLED: ErrorClass(499, "CANCELLED", "cancelled"),
    ErrorCode.INTERNAL_ERROR: _INTERNAL,
    ErrorCode.OVERLOADED: _UNAVAILABLE,
    ErrorCode.NO_PREFILL_WORKERS: _UNAVAILABLE,
    ErrorCode.NO_DECODE_WORKERS: _UNAVAILABLE,
    ErrorCode.NO_COMPATIBLE_PAIR: _UNAVAILABLE,
    ErrorCode.DRAINING: _UNAVAILABLE,
    ErrorCode.DEADLINE_EXCEEDED: ErrorClass(504, "DEADLINE_EXCEEDED", "timeout"),
    ErrorCode.KV_TRANSFER_FAILED: ErrorClass(500, "ABORTED", "server_error"),
    ErrorCode.KV_DIGEST_MISMATCH: ErrorClass(500, "DATA_LOSS", "server_error"),
    ErrorCode.INCARNATION_MISMATCH: _PRECONDITION,
    ErrorCode.LAYOUT_MISMATCH: _PRECONDITION,
    ErrorCode.WORKER_LOST: ErrorClass(500, "UNAVAILABLE", "server_error"),
    ErrorCode.BAD_MODEL_FILE: _INTERNAL,
    ErrorCode.BAD_SETTING: _INVALID,
    ErrorCode.MISSING_PART: _INTERNAL,
}


class SpliceError(Exception):
    """An error that says what was wrong, where, and what to do.

    `param` names the offending request field or setting; `retry_after_s` is set when trying later can help.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def error_class(self) -> ErrorClass:
        return ERROR_CLASSES[self.code]

    def __str__(self) -> str:
        where = f" [{self.param}]" if self.param else ""
        return f"{self.code.value}{where}: {self.message}"
