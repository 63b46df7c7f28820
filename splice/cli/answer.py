"""Streams one answer to the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from splice.cli.console import err, out
from splice.cli.receipt import receipt_panel
from splice.client import Delta


def show_answer(deltas: Iterable[Delta], *, receipt: bool) -> str:
    """Prints text as it comes, then the receipt; returns the whole text."""
    text, last = "", Delta()
    for delta in deltas:
        text += delta.text
        out.print(delta.text, end="", markup=False, soft_wrap=True)
        if delta.usage or delta.receipt:
            last = Delta("", None, delta.usage or last.usage, delta.receipt or last.receipt)
    out.print()
    if receipt:
        err.print(receipt_panel(last))
    return text
