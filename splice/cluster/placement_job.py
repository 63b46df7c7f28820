"""What the launcher tells the placement process, and what that reports."""

from __future__ import annotations

from typing import Literal

import msgspec

from worker.settings import WorkerSettings

NODE_HOST = "node"
"""As a worker's `host`: the address under which Ray knows the node on which it comes to stand."""


class Outcome(msgspec.Struct, frozen=True):
    """Of a start: JSON of the worker's record, or (code, message, setting) of what prevented it."""

    record: bytes = b""
    error: tuple[str, str, str | None] | None = None


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """`count` workers of equal settings; each takes one of `resource`, or `cpus` where no resource is named."""

    settings: WorkerSettings
    count: int
    resource: str | None
    cpus: float


class Job(msgspec.Struct, frozen=True, kw_only=True):
    action: Literal["place", "stop"]
    ray_address: str
    namespace: str
    timeout_s: float
    pools: tuple[Pool, ...] = ()


class PlacedReport(msgspec.Struct, frozen=True, kw_only=True):
    """One worker: started (`record`), or failed (`error`: code, message, setting)."""

    name: str
    record: bytes = b""
    error: tuple[str, str, str | None] | None = None
