"""How far a run is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from splice.bench.load import Progress as Told
from splice.cli.console import err, say

_LINE_S = 10.0


class Teller:
    """Makes one callback per run."""

    def __init__(self, bars: Progress | None) -> None:
        self._bars = bars

    def watch(self, title: str) -> Told:
        return self._lines(title) if self._bars is None else self._bar(title, self._bars)

    def _bar(self, title: str, bars: Progress) -> Told:
        for task in bars.task_ids:
            bars.remove_task(task)
        bar = bars.add_task(title, total=None, rate="")
        began_s = time.monotonic()

        def told(ended: int, wanted: int, tokens: int) -> None:
            passed_s = time.monotonic() - began_s
            bars.update(bar, completed=ended, total=wanted, rate=f"{tokens / passed_s:.0f} tokens/s")

        return told

    def _lines(self, title: str) -> Told:
        last_s = time.monotonic()

        def told(ended: int, wanted: int, tokens: int) -> None:
            nonlocal last_s
            if (now_s := time.monotonic()) - last_s >= _LINE_S:
                last_s = now_s
                say(f"  {title}: {ended}/{wanted} requests, {tokens} tokens")

        return told


@contextlib.contextmanager
def teller() -> Iterator[Teller]:
    if not err.is_terminal:
        yield Teller(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as bars:
        yield Teller(bars)
