"""Several servers, the same work, in turn: alternating runs, so that a machine's mood falls on all of them alike."""

from __future__ import annotations

import contextlib
import datetime
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splice.bench.arrivals import Closed
from splice.bench.connection import parse_target
from splice.bench.contest_file import ServerEntry
from splice.bench.dialect import DIALECTS
from splice.bench.fingerprint import file_digest, read_environment
from splice.bench.load import Progress, ServerAccess, run_load
from splice.bench.measure import measure
from splice.bench.prompts import TextOf
from splice.bench.result import Repeat, Result, Series, ServerIdentity, StartFigures
from splice.bench.server_process import RunningServer, ServerCommand, running_server
from splice.bench.workload import RandomPrompt, Workload
from wire.errors import ErrorCode, SpliceError


@dataclass(frozen=True, slots=True)
class ContestPlan:
    servers: Sequence[ServerEntry]
    workloads: Sequence[Workload]
    rounds: int
    seed: int
    timeout_s: float
    log_folder: Path
    text_of: TextOf | None = None
    client_cpus: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Record:
    """What was measured of one server so far."""

    identity: ServerIdentity
    repeats: dict[str, list[Repeat]] = field(default_factory=dict)
    starts: list[StartFigures] = field(default_factory=list)


def run_contest(
    plan: ContestPlan,
    *,
    say: Callable[[str], None],
    progress: Callable[[str], Progress],
    save: Callable[[Result], None],
) -> Result:
    """Round by round: each server starts, warms up, runs every workload, ends. `save` is called after every turn, so
    that a contest broken off keeps what it has. A server that fails is named and left out from then on.

    Raises SpliceError if none is left.
    """
    began, environment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), read_environment()
    records = {entry.name: _Record(_identity(entry)) for entry in plan.servers}
    alive = list(plan.servers)

    def result() -> Result:
        series = tuple(each for record in records.values() for each in _series(record, plan.workloads))
        return Result(began=began, seed=plan.seed, environment=environment, series=series)

    with contextlib.ExitStack() as kept:
        running: dict[str, RunningServer] = {}
        for number in range(plan.rounds):
            # The order turns, so that no server always follows the same one.
            turn = number % len(alive)
            for entry in (*alive[turn:], *alive[:turn]):
                say(f"round {number + 1}/{plan.rounds}: {entry.name}")
                try:
                    with _turn(entry, plan, running, kept, records[entry.name], say) as server:
                        _measure_all(entry, server, plan, number, records[entry.name], say, progress)
                except SpliceError as error:
                    alive.remove(entry)
                    say(f"{entry.name} is out: {error}")
                save(result())
            if not alive:
                raise SpliceError(ErrorCode.MISSING_PART, "no server is left; see what was said of each above")
    return result()


@contextlib.contextmanager
def _turn(
    entry: ServerEntry,
    plan: ContestPlan,
    running: dict[str, RunningServer],
    kept: contextlib.ExitStack,
    record: _Record,
    say: Callable[[str], None],
) -> Iterator[RunningServer]:
    if entry.name in running:
        yield running[entry.name]
        return
    with contextlib.ExitStack() as this_turn:
        stack = kept if entry.keep else this_turn
        server = stack.enter_context(running_server(_command(entry), plan.log_folder / f"{entry.name}.log"))
        first_token_s = _first_token_s(entry, server, plan)
        record.starts.append(StartFigures(ready_s=server.ready_s, first_token_s=first_token_s))
        say(f"  ready after {server.ready_s:.1f} s, first token after {first_token_s:.1f} s")
        if entry.keep:
            running[entry.name] = server
        yield server


def _first_token_s(entry: ServerEntry, server: RunningServer, plan: ContestPlan) -> float:
    """Asks for one short answer; returns when its first piece came, after the server's process was made."""
    probe = Workload(
        name="start", title="", requests=1, arrivals=Closed(1), prompt=RandomPrompt(8), output_tokens=4,
        token_ids=plan.workloads[0].token_ids,
    )  # fmt: skip
    asked_s = time.perf_counter()
    load = run_load(probe, _access(entry, server), seed=(plan.seed, 9), timeout_s=entry.start_timeout_s)
    sample = load.samples[0]
    if sample.error is not None or sample.first_us is None:
        raise SpliceError(ErrorCode.INTERNAL_ERROR, f"its first request failed: {sample.error}")
    return asked_s - server.spawned_s + (sample.due_us + sample.first_us) / 1e6


def _measure_all(
    entry: ServerEntry,
    server: RunningServer,
    plan: ContestPlan,
    number: int,
    record: _Record,
    say: Callable[[str], None],
    progress: Callable[[str], Progress],
) -> None:
    for workload in plan.workloads:
        if entry.workloads is not None and workload.name not in entry.workloads:
            continue
        repeat = measure(
            workload,
            _access(entry, server),
            server.tree,
            seed=plan.seed,
            number=number,
            timeout_s=plan.timeout_s,
            text_of=plan.text_of,
            progress=progress(f"{entry.name} · {workload.name}"),
            client_cpus=plan.client_cpus,
        )
        record.repeats.setdefault(workload.name, []).append(repeat)
        say(f"  {workload.name}: {repeat_line(repeat)}")


def repeat_line(repeat: Repeat) -> str:
    """One repeat in one line."""
    summary, resources = repeat.summary, repeat.resources
    parts = [f"{summary.output_tokens_per_s:7.1f} tokens/s"]
    if summary.ttft_ms is not None:
        parts.append(f"TTFT p50 {summary.ttft_ms.p50:.1f} ms")
    if summary.itl_ms is not None:
        parts.append(f"ITL p50 {summary.itl_ms.p50:.1f} p95 {summary.itl_ms.p95:.1f} ms")
    if resources.pss_bytes:
        parts.append(f"PSS {resources.pss_bytes / 1e6:.0f} MB")
    parts.append(f"foreign CPU {100 * resources.foreign_share:.0f} %")
    if repeat.beside:
        parts.append(f"{len(repeat.beside)} requests beside it")
    if failed := summary.failed + sum(sample.error is not None for sample in repeat.beside):
        parts.append(f"{failed} FAILED")
    return ", ".join(parts)


def _access(entry: ServerEntry, server: RunningServer) -> ServerAccess:
    return ServerAccess(parse_target(server.url, None), entry.model, DIALECTS[entry.dialect])


def _command(entry: ServerEntry) -> ServerCommand:
    return ServerCommand(
        entry.name,
        entry.command,
        entry.url,
        entry.ready_path,
        entry.environment,
        Path(entry.folder) if entry.folder else None,
        entry.start_timeout_s,
        entry.stop_timeout_s,
    )


def _identity(entry: ServerEntry) -> ServerIdentity:
    model = Path(entry.model_file) if entry.model_file else None
    if model is not None and not model.exists():
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"server {entry.name}: model_file {model} does not exist", param="contest"
        )
    return ServerIdentity(
        name=entry.name,
        model=entry.model,
        dialect=entry.dialect,
        command=entry.command,
        environment=entry.environment,
        version=entry.version or _version(entry),
        model_digest=file_digest(model) if model else None,
    )


def _version(entry: ServerEntry) -> str | None:
    if not entry.version_command:
        return None
    try:
        done = subprocess.run(entry.version_command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"server {entry.name}: version_command failed: {error}", param="contest"
        ) from None
    lines = (done.stdout + done.stderr).strip().splitlines()
    return next((line for line in lines if "version" in line.lower()), lines[-1] if lines else None)


def _series(record: _Record, workloads: Sequence[Workload]) -> Iterator[Series]:
    for workload in workloads:
        if repeats := record.repeats.get(workload.name):
            yield Series(
                server=record.identity,
                workload=workload,
                workload_digest=workload.digest,
                repeats=tuple(repeats),
                starts=tuple(record.starts),
            )
