"""Transports by name. One whose library is missing is left out, passed over in the open, and explained when it was all
that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from kvtransfer import ucx_library
from kvtransfer.transport import LinkFactory, SourceFactory
from kvtransfer.transports import shm, tcp
from wire.errors import ErrorCode, SpliceError

_log = structlog.get_logger(__name__)
SOURCES: dict[str, SourceFactory] = {"shm": shm.ShmSource, "tcp": tcp.TcpSource}
LINKS: dict[str, LinkFactory] = {"shm": shm.ShmLink, "tcp": tcp.TcpLink}
MISSING: dict[str, str] = {}
"""Known transports that cannot work here, and why."""
SAME_HOST_ONLY = frozenset({"shm"})

if reason := ucx_library.why_missing():
    MISSING["ucx"] = reason
else:
    from kvtransfer.transports import ucx

    SOURCES["ucx"] = ucx.UcxSource
    LINKS["ucx"] = ucx.UcxLink


def checked(transports: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Those of the names that work here; the others are logged.

    Raises SpliceError(BAD_SETTING) naming the first one that does not exist, or the reasons if none works.
    """
    for name in transports:
        if name not in known and name not in MISSING:
            raise SpliceError(
                ErrorCode.BAD_SETTING, f"no KV transport {name!r}; known: {', '.join(known)}", param="kv_transports"
            )
    usable = tuple(name for name in transports if name in known)
    missing = [f"{name}: {MISSING[name]}" for name in transports if name not in known]
    if not usable:
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"no KV transport works here ({'; '.join(missing)})", param="kv_transports"
        )
    for why in missing:
        _log.warning("kv transport not available", reason=why, using=usable)
    return usable
