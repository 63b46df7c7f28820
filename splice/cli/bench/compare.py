"""`splice bench compare`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from splice.bench.fingerprint import Environment
from splice.bench.result import Series, read_result, select
from splice.bench.verdict import ALLOWABLE, TOLERANCE, Judgement, judge
from splice.cli.bench.table import wide_enough
from splice.cli.console import err
from wire.errors import ErrorCode, SpliceError

EXIT_WORSE = 1
EXIT_NOT_COMPARABLE = 3
_STYLES = {Judgement.BETTER: "green", Judgement.WORSE: "bold red", Judgement.SAME: "dim", Judgement.UNCLEAR: "yellow"}


def command(
    baseline: Annotated[str, typer.Argument(help="FILE, or FILE#SERVER where it holds several.", metavar="A.json")],
    candidate: Annotated[str, typer.Argument(help="The same; may be the same file.", metavar="B.json")],
    tolerance: Annotated[
        float, typer.Option(help="Ratios this near to 1 are no difference.", min=0.0, max=0.5)
    ] = TOLERANCE,
    allow: Annotated[str, typer.Option(help=f"Compare in spite of: {', '.join(ALLOWABLE)}.", metavar="LIST")] = "",
) -> None:
    """Say whether B is better or worse than A: ratios of medians over repeats, with 95 % bootstrap intervals.

    Exit code 0: nothing is worse; 1: something is; 2: a file cannot be read; 3: the two are not comparable, and why.
    """
    allowed = frozenset(word for word in allow.split(",") if word)
    if unknown := allowed - set(ALLOWABLE):
        raise SpliceError(
            ErrorCode.BAD_SETTING, f"--allow {sorted(unknown)[0]}: expected words from {', '.join(ALLOWABLE)}",
            param="allow",
        )  # fmt: skip
    (first, first_machine), (second, second_machine) = _read(baseline), _read(candidate)
    verdict = judge(first, second, (first_machine, second_machine), allow=allowed, tolerance=tolerance)
    if verdict.obstacles:
        err.print("not comparable:", style="bold yellow")
        for obstacle in verdict.obstacles:
            err.print(f"  {obstacle}", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_NOT_COMPARABLE)
    table = Table("workload", "metric", "A", "B", "B / A", "95 % interval", "verdict", box=None, pad_edge=False)
    for each in verdict.comparisons:
        table.add_row(
            each.workload,
            f"{each.metric} ({each.unit})",
            f"{each.baseline:.4g}",
            f"{each.candidate:.4g}",
            f"{each.ratio:.3f}",
            f"{each.low:.3f} … {each.high:.3f}",
            each.judgement.value,
            style=_STYLES[each.judgement],
        )
    wide_enough(table)
    if verdict.is_worse:
        raise typer.Exit(EXIT_WORSE)


def _read(word: str) -> tuple[tuple[Series, ...], Environment]:
    name, _, server = word.partition("#")
    result = read_result(Path(name))
    return select(result, server or None, name), result.environment
