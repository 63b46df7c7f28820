"""A short-lived process that joins Ray, places or ends the workers of one cluster, and leaves.

Reads one Job as JSON from stdin, writes one PlacedReport as JSON a line to stdout. The actors are detached: they
outlive this process and the launcher, and Ray starts them anew when they die.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import msgspec
import ray
import ray.util

from splice.cluster.placed_worker import PlacedWorker
from splice.cluster.placement_job import Job, Outcome, PlacedReport
from wire.errors import ErrorCode


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    ray.init(
        address=job.ray_address,
        namespace=job.namespace,
        **_address_of_own_head(job.ray_address),
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )
    if job.action == "place":
        _place(job)
    else:
        _stop(job)
    sys.stdout.flush()
    os._exit(0)  # leaving Ray takes a second, and after the death of its head much longer


def _address_of_own_head(ray_address: str) -> dict[str, Any]:
    """A head of ours stands on loopback; told nothing, Ray would look for this machine's node on the network."""
    host = ray_address.rpartition(":")[0]
    return {"_node_ip_address": host} if host.startswith("127.") else {}


def _place(job: Job) -> None:
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
                resources={pool.resource: 1} if pool.resource else None,
            ).remote(pool.settings)
            waiting[actor.started.remote(job.timeout_s)] = name
    while waiting and time.monotonic() < deadline_s:
        done, _ = ray.wait(list(waiting), timeout=max(0.0, deadline_s - time.monotonic()))
        for reference in done:
            _report(waiting.pop(reference), reference)
    for name in waiting.values():
        message = (
            f"{name} did not start within {job.timeout_s:.0f} s; Ray found no free place or its start takes longer"
        )
        _say(PlacedReport(name=name, error=(ErrorCode.MISSING_PART.value, message, "start_timeout")))


def _report(name: str, reference: Any) -> None:
    try:
        outcome = msgspec.json.decode(ray.get(reference), type=Outcome)
    except ray.exceptions.RayError as error:
        text = str(error).strip() or type(error).__name__
        outcome = Outcome(error=(ErrorCode.WORKER_LOST.value, f"{name} died while starting: {text[-600:]}", None))
    _say(PlacedReport(name=name, record=outcome.record, error=outcome.error))


def _stop(job: Job) -> None:
    actors = [ray.get_actor(each["name"], each["namespace"]) for each in ray.util.list_named_actors(all_namespaces=True)
              if each["namespace"] == job.namespace]  # fmt: skip
    stopping: list[Any] = [actor.stop.remote(job.timeout_s) for actor in actors]
    if stopping:
        ray.wait(stopping, num_returns=len(stopping), timeout=job.timeout_s)
    for actor in actors:
        ray.kill(actor, no_restart=True)


def _say(report: PlacedReport) -> None:
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
