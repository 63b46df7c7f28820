"""`splice bench run`"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import psutil
import typer

from splice.bench.connection import parse_target
from splice.bench.contest import repeat_line
from splice.bench.dialect import DIALECTS
from splice.bench.fingerprint import file_digest, read_environment
from splice.bench.load import ServerAccess, model_names
from splice.bench.measure import measure
from splice.bench.process_tree import ServerTree
from splice.bench.result import Repeat, Result, Series, ServerIdentity, write_result
from splice.cli.bench.chosen import chosen_cpus, chosen_text, chosen_workloads
from splice.cli.bench.progress import teller
from splice.cli.bench.table import show_table
from splice.cli.console import err, say
from splice.cli.flags import with_settings
from splice.settings.bench import BenchRunSettings
from wire.errors import ErrorCode, SpliceError

EXIT_FAILED_REQUESTS = 1


@with_settings(BenchRunSettings)
def command(
    settings: BenchRunSettings,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where every sample goes; .json or .json.gz.")
    ] = None,
) -> None:
    """Load a server that is running and say how it did.

    Exit code 0: every request was answered in full; 1: some were not; 2: nothing could be measured.
    """
    workloads, text_of = chosen_workloads(settings), chosen_text(settings)
    target = parse_target(settings.url, settings.api_key)
    server = ServerAccess(target, settings.model or _only_model(model_names(target)), DIALECTS[settings.dialect])
    tree = None if settings.server_pid is None else _tree(settings.server_pid)
    identity = _identity(settings, server)
    cpus = chosen_cpus(settings)
    began, environment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), read_environment()
    measured: dict[str, list[Repeat]] = {workload.name: [] for workload in workloads}
    with teller() as progress:
        for number in range(settings.repeats):
            for workload in workloads:
                repeat = measure(
                    workload,
                    server,
                    tree,
                    seed=settings.bench_seed,
                    number=number,
                    timeout_s=settings.run_timeout,
                    text_of=text_of,
                    progress=progress.watch(f"{workload.name} {number + 1}/{settings.repeats}"),
                    client_cpus=cpus,
                )
                measured[workload.name].append(repeat)
                say(f"{workload.name} {number + 1}/{settings.repeats}: {repeat_line(repeat)}")
    series = tuple(
        Series(server=identity, workload=each, workload_digest=each.digest, repeats=tuple(measured[each.name]))
        for each in workloads
    )
    result = Result(began=began, seed=settings.bench_seed, environment=environment, series=series)
    if output is not None:
        write_result(result, output)
        say(f"written to {output}")
    show_table(result.series, markdown=False)
    _end_with_errors(result)


def _only_model(names: list[str]) -> str:
    if len(names) != 1:
        raise SpliceError(
            ErrorCode.MODEL_NOT_FOUND, f"the server serves {names or 'no model'}; name one with --model", param="model"
        )
    return names[0]


def _tree(pid: int) -> ServerTree:
    if not psutil.pid_exists(pid):
        raise SpliceError(ErrorCode.BAD_SETTING, f"no process has the pid {pid}", param="server_pid")
    return ServerTree(pid)


def _identity(settings: BenchRunSettings, server: ServerAccess) -> ServerIdentity:
    path = None if settings.model_file is None else Path(settings.model_file)
    if path is not None and not path.exists():
        raise SpliceError(ErrorCode.BAD_SETTING, f"{path} does not exist", param="model_file")
    return ServerIdentity(
        name=settings.server_name or settings.dialect,
        model=server.model,
        dialect=settings.dialect,
        model_digest=None if path is None else file_digest(path),
    )


def _end_with_errors(result: Result) -> None:
    errors = [
        sample.error
        for series in result.series
        for repeat in series.repeats
        for sample in (*repeat.samples, *repeat.beside)
    ]
    failed = [error for error in errors if error is not None]
    if failed:
        err.print(
            f"{len(failed)} of {len(errors)} requests failed, the first: {failed[0]}", style="bold red", markup=False
        )
        raise typer.Exit(EXIT_FAILED_REQUESTS)
