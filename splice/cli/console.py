"""Where commands print: answers to stdout, everything said about them to stderr."""

from __future__ import annotations

from rich.console import Console

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    err.print(line, style="dim", markup=False, soft_wrap=True)
