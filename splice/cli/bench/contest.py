"""`splice bench contest`"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from splice.bench.contest import ContestPlan, run_contest
from splice.bench.contest_file import load_contest
from splice.bench.result import write_result
from splice.cli.bench.chosen import chosen_cpus, chosen_text, chosen_workloads
from splice.cli.bench.progress import teller
from splice.cli.bench.table import show_table
from splice.cli.console import say
from splice.cli.flags import with_settings
from splice.settings.bench import BenchContestSettings
from wire.errors import ErrorCode, SpliceError


@with_settings(BenchContestSettings)
def command(
    settings: BenchContestSettings,
    file: Annotated[Path, typer.Argument(help="TOML with one \\[\\[server]] per server.", metavar="FILE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where every sample goes; .json or .json.gz.")],
) -> None:
    """Start several servers in turn, give each the same work, alternate, and keep every sample.

    Each round gives every server one turn: start, first token, warm-up, all workloads, end.
    """
    plan = ContestPlan(
        servers=load_contest(file, settings.servers, _places(settings.place)),
        workloads=chosen_workloads(settings),
        rounds=settings.rounds,
        seed=settings.bench_seed,
        timeout_s=settings.run_timeout,
        log_folder=output.with_suffix("").with_suffix("") / "logs",
        text_of=chosen_text(settings),
        client_cpus=chosen_cpus(settings),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: servers end with the contest
    with teller() as progress:
        result = run_contest(plan, say=say, progress=progress.watch, save=lambda so_far: write_result(so_far, output))
    say(f"written to {output}; servers' logs in {plan.log_folder}")
    show_table(result.series, markdown=False)


def _places(words: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise SpliceError(ErrorCode.BAD_SETTING, f"--place is {word!r}; expected NAME=PATH", param="place")
        found[name] = value
    return found
