"""Everything a router can be told, as one frozen value. Who reads environment, files and flags lives upstairs."""

from __future__ import annotations

from dataclasses import dataclass

from wire.worker_record import WorkerRecord


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Times in seconds; port 0 takes a free one, which `BoundPorts` reports."""

    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    etcd_endpoints: tuple[str, ...] = ()
    cluster: str = "default"
    static_workers: tuple[WorkerRecord, ...] = ()
    """Workers to use without a membership store, when `etcd_endpoints` is empty."""
    api_keys: tuple[str, ...] = ()
    """Empty: no key is asked for."""
    max_model_len: int | None = None
    """Tightens the models' own limit of prompt and answer together."""
    default_seed: int | None = None
    """The seed of requests that name none; None draws a fresh one for each."""
    max_body_bytes: int = 8 * 2**20
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    no_worker_grace_s: float = 0.0
    max_attempts: int = 4
    max_local_prefill_tokens: int = 0
    heartbeat_timeout_s: float = 3.0
    stall_timeout_s: float = 10.0
    max_running_requests: int = 1024
    drain_timeout_s: float = 10.0
    """How long running requests may go on after `stop` is set."""


@dataclass(frozen=True, slots=True)
class BoundPorts:
    """Where the router listens."""

    host: str
    http: int
    grpc: int
