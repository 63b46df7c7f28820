"""The receipt of one request, as a panel."""

from __future__ import annotations

from typing import Any

from rich.panel import Panel
from rich.table import Table

from splice.client import Delta


def receipt_panel(last: Delta) -> Panel:
    """How the request travelled: every figure is the router's or a worker's measurement."""
    receipt, usage = last.receipt, last.usage
    rows = Table.grid(padding=(0, 2))
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    rows.add_row(
        "tokens", f"{usage.get('prompt_tokens', 0)} in ({cached} cached), {usage.get('completion_tokens', 0)} out"
    )
    rows.add_row("prefill worker", receipt.get("prefill_worker") or "none: prefilled on the decode worker")
    rows.add_row("decode worker", receipt.get("decode_worker") or "none: the answer ended on its first token")
    if receipt.get("transport"):
        fallbacks = receipt.get("transport_fallbacks", 0)
        rows.add_row("KV transport", receipt["transport"] + (f" after {fallbacks} fallbacks" if fallbacks else ""))
        size, copy_s = float(receipt.get("kv_bytes", 0)), float(receipt.get("copy_s", 0))
        speed = f" at {size / copy_s / 1e9:.2f} GB/s" if copy_s > 0 else ""
        rows.add_row("KV moved", f"{size / 1e6:.2f} MB in {receipt.get('kv_blocks', 0)} blocks{speed}")
    rows.add_row("TTFT", f"{_ms(receipt, 'ttft_s')}")
    if receipt.get("transport"):
        rows.add_row("cost of hand-off", f"{_ms(receipt, 'exposed_s')} (from the end of prefill to decode being ready)")
    rows.add_row("ITL", f"p50 {_ms(receipt, 'itl_p50_s')}, p95 {_ms(receipt, 'itl_p95_s')}")
    if receipt.get("attempts", 1) > 1:
        rows.add_row("attempts", str(receipt["attempts"]))
    rows.add_row("seed", str(receipt.get("seed", "")))
    return Panel(rows, title="receipt", title_align="left", expand=False)


def _ms(receipt: dict[str, Any], name: str) -> str:
    value = receipt.get(name) or 0.0
    return f"{float(value) * 1000:.1f} ms"
