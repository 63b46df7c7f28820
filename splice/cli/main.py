"""The `splice` command."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from splice.cli import chat, complete, demo, doctor, down, pull, router, serve, status, worker
from splice.cli.console import err, out
from wire.errors import SpliceError

EXIT_ERROR = 2

app = typer.Typer(
    name="splice",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=(
        "Disaggregated LLM serving: prefill and decode on separate pools, the KV cache handed over between them.\n\n"
        "Start here: [bold]splice pull smollm2[/bold], [bold]splice serve smollm2[/bold], and in another terminal "
        "[bold]splice chat[/bold].\n\n"
        "Every flag can also be set in a YAML file (--config) or in the environment: --max-num-seqs is "
        "SPLICE_MAX_NUM_SEQS. Flags win over the environment, which wins over the file."
    ),
)
COMMANDS = (serve, chat, complete, status, down, pull, doctor, router, worker, demo)
for module in COMMANDS:
    app.command(module.__name__.rpartition(".")[2])(module.command)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        out.print(importlib.metadata.version("splice-serve"))
        raise typer.Exit


def main() -> None:
    """Runs the command line; every expected error is one message and exit code 2, never a traceback."""
    try:
        app()
    except SpliceError as error:
        err.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)
