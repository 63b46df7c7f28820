"""`splice doctor`"""

from __future__ import annotations

import typer

from splice.cli.console import out
from splice.doctor import examine
from splice.finding import Finding

_MARKS = {"ok": "[green]ok[/green]", "missing": "[bold red]missing[/bold red]", "optional": "[yellow]optional[/yellow]"}


def command() -> None:
    """Examine this machine: what is there, what is missing, how to get it.

    Exit code 1 if something needed is missing.
    """
    findings = examine()
    for finding in findings:
        _print(finding)
    if any(finding.verdict == "missing" for finding in findings):
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    out.print(f"{_MARKS[finding.verdict]}\t{finding.part:<18} {finding.found}", soft_wrap=True)
    if finding.remedy:
        out.print(f"\t{'':<18} [dim]{finding.remedy}[/dim]", soft_wrap=True)
