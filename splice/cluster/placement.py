"""The one process that speaks Ray: it starts a head if asked to, places or ends the workers of a cluster, and leaves.

Reads Commands as JSON from stdin, one a line, and writes Reports to stdout likewise; it leaves after a Job. Started
before it is needed, it has loaded Ray when the first command comes. Actors are detached: they outlive this process and
the launcher, and Ray starts them anew when they die.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any, BinaryIO

import msgspec
import ray
import ray.util

from splice.cluster.placed_worker import PlacedWorker
from splice.cluster.placement_job import Command, HeadReport, Job, Outcome, PlacedReport, Report, StartHead
from wire.errors import ErrorCode


def main() -> None:
    reports = _Reports()
    for line in sys.stdin.buffer:
        command = msgspec.json.decode(line, type=Command)
        if isinstance(command, StartHead):
            reports.send(HeadReport(error=_start_head(command)))
            continue
        _connect(command)
        if command.action == "place":
            _place(command, reports)
        else:
            _stop(command)
        break
    os._exit(0)  # leaving Ray takes a second, and after the death of its head much longer


class _Reports:
    """What Ray prints to stdout goes to the log; the pipe carries reports alone."""

    def __init__(self) -> None:
        self._pipe: BinaryIO = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(self, report: Report) -> None:
        self._pipe.write(msgspec.json.encode(report) + b"\n")
        self._pipe.flush()


def _start_head(command: StartHead) -> tuple[str, str, str | None] | None:
    try:
        from splice.cluster.ray_node import start_head  # noqa: PLC0415 (of no use where Ray runs already)

        start_head(command)
    except Exception as error:
        logging.getLogger(__name__).exception("Ray did not start")
        return ErrorCode.MISSING_PART.value, f"Ray {ray.__version__} did not start: {error!r}", "ray"
    return None


def _connect(job: Job) -> None:
    ray.init(
        address=job.ray_address,
        namespace=job.namespace,
        **_address_of_own_head(job.ray_address),
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )


def _address_of_own_head(ray_address: str) -> dict[str, Any]:
    """A head of ours stands on loopback; told nothing, Ray would look for this machine's node on the network."""
    host = ray_address.rpartition(":")[0]
    return {"_node_ip_address": host} if host.startswith("127.") else {}


def _place(job: Job, reports: _Reports) -> None:
    deadline_s = time.monotonic() + job.timeout_s
    waiting: dict[Any, str] = {}
    for pool in job.pools:
        placed: Any = ray.remote(PlacedWorker)
        for index in range(pool.count):
            name = f"{pool.settings.role}-{index}"
            actor = placed.options(
                name=name,
                lifetime="detached",
                max_restarts=-1,
                max_concurrency=4,
                num_cpus=0 if pool.resource else pool.cpus,
                num_gpus=0 if pool.resource else pool.gpus,
                resources={pool.resource: 1} if pool.resource else None,
            ).remote(pool.settings)
            waiting[actor.started.remote(job.timeout_s)] = name
    while waiting and time.monotonic() < deadline_s:
        done, _ = ray.wait(list(waiting), timeout=max(0.0, deadline_s - time.monotonic()))
        for reference in done:
            reports.send(_report(waiting.pop(reference), reference))
    for name in waiting.values():
        message = (
            f"{name} did not start within {job.timeout_s:.0f} s; Ray found no free place or its start takes longer"
        )
        reports.send(PlacedReport(name=name, error=(ErrorCode.MISSING_PART.value, message, "start_timeout")))


def _report(name: str, reference: Any) -> PlacedReport:
    try:
        outcome = msgspec.json.decode(ray.get(reference), type=Outcome)
    except ray.exceptions.RayError as error:
        text = str(error).strip() or type(error).__name__
        outcome = Outcome(error=(ErrorCode.WORKER_LOST.value, f"{name} died while starting: {text[-600:]}", None))
    return PlacedReport(name=name, record=outcome.record, error=outcome.error)


def _stop(job: Job) -> None:
    actors = [ray.get_actor(each["name"], each["namespace"]) for each in ray.util.list_named_actors(all_namespaces=True)
              if each["namespace"] == job.namespace]  # fmt: skip
    stopping: list[Any] = [actor.stop.remote(job.timeout_s) for actor in actors]
    if stopping:
        ray.wait(stopping, num_returns=len(stopping), timeout=job.timeout_s)
    for actor in actors:
        ray.kill(actor, no_restart=True)


if __name__ == "__main__":
    main()
