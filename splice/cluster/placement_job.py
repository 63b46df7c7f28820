"""What the launcher tells the placement process, and what that reports."""

from __future__ import annotations

from typing import Literal

import msgspec

from worker.settings import WorkerSettings

NODE_HOST = "node"
"""As a worker's `host`: the address under which Ray knows the node on which it comes to stand."""

Failure = tuple[str, str, str | None]
"""Error code, message, and the setting at fault."""


class Outcome(msgspec.Struct, frozen=True):
    """Of a start: JSON of the worker's record, or what prevented it."""

    record: bytes = b""
    error: Failure | None = None


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """`count` workers of equal settings; each takes one of `resource`, or `cpus` and `gpus` where none is named."""

    settings: WorkerSettings
    count: int
    resource: str | None
    cpus: float
    gpus: float


class StartHead(msgspec.Struct, frozen=True, kw_only=True, tag="start_head"):
    """Start a Ray head here that outlives the placement process. Its token's path stands in the environment."""

    folder: str
    host: str
    port: int
    resources: dict[str, int]


class Job(msgspec.Struct, frozen=True, kw_only=True, tag="job"):
    action: Literal["place", "stop"]
    ray_address: str
    namespace: str
    timeout_s: float
    pools: tuple[Pool, ...] = ()


Command = StartHead | Job


class HeadReport(msgspec.Struct, frozen=True, kw_only=True, tag="head"):
    """The head accepts drivers, or does not (`error`)."""

    error: Failure | None = None


class PlacedReport(msgspec.Struct, frozen=True, kw_only=True, tag="placed"):
    """One worker: started (`record`), or failed (`error`)."""

    name: str
    record: bytes = b""
    error: Failure | None = None


Report = HeadReport | PlacedReport
