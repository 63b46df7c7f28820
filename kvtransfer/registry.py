"""Transports by name. A transport whose library is missing is left out, and named when it is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from kvtransfer.transport import LinkFactory, SourceFactory
from kvtransfer.transports import shm, tcp
from wire.errors import ErrorCode, SpliceError

SOURCES: dict[str, SourceFactory] = {"shm": shm.ShmSource, "tcp": tcp.TcpSource}
LINKS: dict[str, LinkFactory] = {"shm": shm.ShmLink, "tcp": tcp.TcpLink}
SAME_HOST_ONLY = frozenset({"shm"})

if importlib.util.find_spec("ucxx") is not None:
    from kvtransfer.transports import ucx

    SOURCES["ucx"] = ucx.UcxSource
    LINKS["ucx"] = ucx.UcxLink


def checked(transports: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The same names, or SpliceError(BAD_SETTING) naming the first one that is not known."""
    for name in transports:
        if name not in known:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"no KV transport {name!r} here; known: {', '.join(known)} (ucx needs the package ucxx-cu12)",
                param="kv_transports",
            )
    return tuple(transports)
