"""`splice bench show`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice.bench.result import read_result
from splice.cli.bench.table import show_table
from splice.cli.console import say


def command(
    files: Annotated[list[Path], typer.Argument(help="Results.", metavar="FILE...")],
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for a document.")] = False,
) -> None:
    """Print the figures of results: medians over repeats, one line per server and workload."""
    for path in files:
        result = read_result(path)
        machine = result.environment
        commit = (machine.git_commit or "no git")[:10] + ("+changes" if machine.git_dirty else "")
        say(f"{path}: {result.began}, {machine.cores} × {machine.cpu_model}, Linux {machine.kernel}, {commit}")
        show_table(result.series, markdown=markdown)
