"""`splice bench workloads`"""

from __future__ import annotations

from rich.table import Table

from splice.bench.workload import load_workload, workload_names
from splice.cli.console import out


def command() -> None:
    """List the workloads that come with Splice."""
    table = Table("name", "requests", "what", box=None, pad_edge=False)
    for name in workload_names():
        workload = load_workload(name)
        table.add_row(name, str(workload.requests), workload.title)
    out.print(table)
