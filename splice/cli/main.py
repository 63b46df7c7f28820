"""The `splice` command."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from splice.cli.console import err, out
from wire.errors import SpliceError

EXIT_ERROR = 2
COMMANDS = ("serve", "chat", "complete", "status", "down", "pull", "doctor", "router", "worker", "demo")
"""Each the name of a module beside this one, with a function `command`."""
GROUPS = ("bench",)
"""Each the name of a package beside this one, with commands of its own in `app`."""


class _OnDemand(MutableMapping[str, Any]):  # Any: typer's own command class is private
    """Commands by name. A module is imported when its command is asked for: none waits for another's libraries."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _build(name)
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        del self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*COMMANDS, *GROUPS, *self._built)))

    def __len__(self) -> int:
        return len({*COMMANDS, *GROUPS, *self._built})


def _build(name: str) -> Any:
    if name not in COMMANDS and name not in GROUPS:
        raise KeyError(name)
    module = importlib.import_module(f"splice.cli.{name}")
    if name in GROUPS:
        return typer.main.get_command(module.app)
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    alone.command(name)(module.command)
    return typer.main.get_command(alone)


class _Commands(typer.core.TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _OnDemand()


app = typer.Typer(
    name="splice",
    cls=_Commands,
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
