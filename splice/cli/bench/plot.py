"""`splice bench plot`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splice.bench.plot import plot
from splice.bench.result import read_result
from splice.cli.console import say


def command(
    files: Annotated[list[Path], typer.Argument(help="Results.", metavar="FILE...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture: .svg, .png or .pdf.")] = Path("bench.svg"),
) -> None:
    """Draw results: throughput with intervals, and the whole distributions of TTFT and of gaps between tokens."""
    results = [(path, read_result(path)) for path in files]
    names = [name for _, result in results for name in result.servers()]
    labelled = [
        (each.server.name if names.count(each.server.name) == 1 else f"{each.server.name}, {path.stem}", each)
        for path, result in results
        for each in result.series
    ]
    plot(labelled, output)
    say(f"drawn: {output}")
