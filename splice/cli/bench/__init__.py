"""`splice bench`: one file per subcommand; what they print is decided in `splice.bench`."""

from __future__ import annotations

import typer

from splice.cli.bench import compare, contest, floor, plot, run, show, workloads

app = typer.Typer(
    name="bench",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=(
        "Measure servers that speak the OpenAI API: this one or any other.\n\n"
        "[bold]splice bench run --workload A,B[/bold] · load a running server, write every sample to a file\n\n"
        "[bold]splice bench contest FILE[/bold] · start several servers in turn, alternate their runs\n\n"
        "[bold]splice bench compare A.json B.json[/bold] · better, worse or not comparable, with an exit code"
    ),
)
for module in (run, contest, compare, show, plot, floor, workloads):
    app.command(module.__name__.rpartition(".")[2])(module.command)
