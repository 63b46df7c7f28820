"""One measured repeat: warm-up, load, resources, summary."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator

import msgspec

from splice.bench.load import LoadResult, Progress, ServerAccess, run_load
from splice.bench.process_tree import ServerTree
from splice.bench.prompts import TextOf
from splice.bench.resources import ResourceMeter
from splice.bench.result import Repeat
from splice.bench.summary import summarise
from splice.bench.workload import Workload
from wire.errors import ErrorCode, SpliceError

_WARMUP, _MEASURED = 0, 1
"""Warm-up prompts must not be found in a prefix cache by the measured ones, so they come from another stream."""


def measure(
    workload: Workload,
    server: ServerAccess,
    tree: ServerTree | None,
    *,
    seed: int,
    number: int,
    timeout_s: float,
    text_of: TextOf | None,
    progress: Progress,
    client_cpus: frozenset[int] = frozenset(),
) -> Repeat:
    """Repeat `number`. Its prompts depend on (workload, seed, number) alone: every server gets the same.

    Raises SpliceError if the server is not there or the warm-up fails: then nothing would be worth measuring.
    """
    warm_up(workload, server, seed=seed, number=number, timeout_s=timeout_s, text_of=text_of)
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    meter = ResourceMeter(tree)
    with _pinned(client_cpus), meter.running():
        load = run_load(
            workload,
            server,
            seed=(seed, _MEASURED, number),
            timeout_s=timeout_s,
            text_of=text_of,
            progress=progress,
        )
    assert meter.result is not None  # noqa: S101 (the block has ended)
    return Repeat(
        number=number,
        began=began,
        resources=meter.result,
        summary=summarise(load.samples, load.wall_s, workload.slo),
        samples=load.samples,
        beside=load.beside,
    )


@contextlib.contextmanager
def _pinned(cpus: frozenset[int]) -> Iterator[None]:
    """Only while the client measures: servers started by this process would inherit it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def warm_up(
    workload: Workload, server: ServerAccess, *, seed: int, number: int, timeout_s: float, text_of: TextOf | None
) -> LoadResult | None:
    """Sends `warmup_requests` requests of the workload's shape; None if it wants none."""
    if not workload.warmup_requests:
        return None
    count = min(workload.warmup_requests, workload.requests)
    fewer = msgspec.structs.replace(workload, requests=count, trace=workload.trace[:count], beside=None)
    result = run_load(fewer, server, seed=(seed, _WARMUP, number), timeout_s=timeout_s, text_of=text_of)
    for sample in result.samples:
        if sample.error is not None:
            raise SpliceError(
                ErrorCode.INTERNAL_ERROR,
                f"the warm-up of workload {workload.name} failed: {sample.error}; nothing was measured",
            )
    return result
