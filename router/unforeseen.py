"""Faults nobody foresaw, as a client sees them."""

from __future__ import annotations

from wire.errors import ErrorCode, SpliceError


def internal_error(error: BaseException) -> SpliceError:
    """That it happened, never its text."""
    return SpliceError(ErrorCode.INTERNAL_ERROR, f"the router failed on this request ({type(error).__name__})")
