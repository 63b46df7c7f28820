"""One line per server and workload: medians over repeats."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from splice.bench.metrics import SHOWN, values
from splice.bench.result import Series
from splice.bench.statistics import median
from splice.cli.console import out

_WIDTH = 180


def show_table(series: Sequence[Series], *, markdown: bool) -> None:
    """Columns nobody has figures for are left out."""
    shown = [metric for metric in SHOWN if any(values(metric, each.repeats) for each in series)]
    heads = ["workload", "server", "repeats", "failed", *(f"{metric.name} ({metric.unit})" for metric in shown)]
    heads += ["first token (s)"] if any(each.starts for each in series) else []
    rows = []
    for each in sorted(series, key=lambda one: one.workload.name):
        failed = sum(repeat.summary.failed for repeat in each.repeats)
        cells = [each.workload.name, each.server.name, str(len(each.repeats)), str(failed)]
        for metric in shown:
            found = values(metric, each.repeats)
            cells.append(f"{median(found):.4g}" if found else "–")
        if len(heads) > len(cells):
            cells.append(f"{median([start.first_token_s for start in each.starts]):.1f}" if each.starts else "–")
        rows.append(cells)
    if markdown:
        for line in (heads, ["---"] * len(heads), *rows):
            out.print(f"| {' | '.join(line)} |", markup=False, soft_wrap=True)
        return
    table = Table(*(head.replace(" (", "\n(") for head in heads), box=None, pad_edge=False)
    for cells in rows:
        table.add_row(*cells)
    wide_enough(table)


def wide_enough(table: Table) -> None:
    """Through a pipe the 80 columns of an unknown terminal would cut every figure."""
    (out if out.is_terminal else Console(highlight=False, width=_WIDTH)).print(table)
