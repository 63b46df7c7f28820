"""Transports by name. One whose library is missing is left out, passed over in the open, and explained when it was all
that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import structlog

from kvtransfer import nccl_library, ucx_library
from kvtransfer.device_pool import DevicePoolMemory
from kvtransfer.pool import KVPool
from kvtransfer.transport import DeviceLink, LinkFactory, SourceFactory
from kvtransfer.transports import cuda_ipc, nccl, shm, staged, tcp
from wire.errors import ErrorCode, SpliceError

_log = structlog.get_logger(__name__)
SOURCES: dict[str, SourceFactory] = {"shm": shm.ShmSource, "tcp": tcp.TcpSource}
LINKS: dict[str, LinkFactory] = {"shm": shm.ShmLink, "tcp": tcp.TcpLink}
MISSING: dict[str, str] = {}
"""Known transports that cannot work here, and why."""
SAME_HOST_ONLY = frozenset({"shm", "cuda_ipc"})
DEVICE_SOURCES: dict[str, SourceFactory] = {
    "cuda_ipc": cuda_ipc.CudaIpcSource,
    "nccl": nccl.NcclSource,
    "shm": staged.StagedSource,
    "tcp": tcp.TcpSource,
}
"""From a pool on a device; shm and tcp copy through pinned host memory."""

DEVICE_LINKS: dict[str, Callable[..., DeviceLink]] = {
    "cuda_ipc": cuda_ipc.CudaIpcLink,
    "nccl": nccl.NcclLink,
    "shm": staged.StagedLink,
}
"""Into one: (address, what the pool behind it must be, pool=the one to fill)."""

if reason := ucx_library.why_missing():
    MISSING["ucx"] = reason
else:
    from kvtransfer.transports import ucx

    SOURCES["ucx"] = DEVICE_SOURCES["ucx"] = ucx.UcxSource
    LINKS["ucx"] = ucx.UcxLink
    DEVICE_LINKS["ucx"] = ucx.UcxDeviceLink

MISSING["cuda_ipc"] = "maps memory of a GPU, and this pool lies in host memory; there it is shm, or tcp"
MISSING["nccl"] = "moves memory of GPUs, and this pool lies in host memory; there it is shm, ucx, or tcp"


def sources_of(pool: KVPool) -> Mapping[str, SourceFactory]:
    """What can serve `pool`."""
    if not isinstance(pool, DevicePoolMemory):
        return SOURCES
    return {name: source for name, source in DEVICE_SOURCES.items() if name not in device_missing()}


def links_into(pool: KVPool) -> Mapping[str, LinkFactory]:
    """What can fill `pool`."""
    if not isinstance(pool, DevicePoolMemory):
        return LINKS
    links = {name: partial(link, pool=pool) for name, link in DEVICE_LINKS.items() if name not in device_missing()}
    return {**links, "tcp": tcp.TcpLink}


def missing_for(pool: KVPool) -> Mapping[str, str]:
    """Known transports that cannot carry blocks of `pool`, and why."""
    return device_missing() if isinstance(pool, DevicePoolMemory) else MISSING


@cache
def device_missing() -> Mapping[str, str]:
    """The same for every pool on a device. Libraries are loaded to find out: only where there is such a pool."""
    reasons = {
        "nccl": nccl_library.why_missing(),
        "ucx": ucx_library.why_no_cuda(),
    }
    return {name: reason for name, reason in reasons.items() if reason}


def checked(
    transports: Sequence[str], known: Sequence[str], missing: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Those of the names that work here; the others are logged.

    Raises SpliceError(BAD_SETTING) naming the first one that does not exist, or the reasons if none works.
    """
    missing = MISSING if missing is None else missing
    for name in transports:
        if name not in known and name not in missing:
            raise SpliceError(
                ErrorCode.BAD_SETTING, f"no KV transport {name!r}; known: {', '.join(known)}", param="kv_transports"
            )
    usable = tuple(name for name in transports if name in known)
    reasons = [f"{name}: {missing[name]}" for name in transports if name not in known]
    if not usable:
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"no KV transport works here ({'; '.join(reasons)})", param="kv_transports"
        )
    for why in reasons:
        _log.warning("kv transport not available", reason=why, using=usable)
    return usable
