"""Operators of dense models: norms, gates, rotation, attention, products in bfloat16, draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.ops.cuda import attention, cache, draw, gemm, push, rows
from engine.ops.cuda.library import Library
from engine.steps.peer_rows import PeerRows

_PAGED = "Tensor q, Tensor kv_cache, int layer, Tensor block_tables, Tensor query_starts, Tensor starts"
_BOUNDS = "int max_context, int max_query, float scale, int window=0, float softcap=0.0, Tensor? sinks=None"
SCHEMAS = {
    "rms_norm": "(Tensor x, Tensor weight, float eps) -> Tensor",
    "add_rms_norm": "(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor",
    "gated_mul": "(Tensor gate_up, str activation) -> Tensor",
    "rope_and_store": "(Tensor q, Tensor k, Tensor v, Tensor positions, Tensor cos_sin, Tensor(a!) kv_cache, int layer,"
    " Tensor slots) -> Tensor",
    "rope_store_and_push": "(Tensor q, Tensor k, Tensor v, Tensor positions, Tensor cos_sin, Tensor(a!) kv_cache,"
    " int layer, Tensor slots, Tensor peer_caches, Tensor peer_slots) -> Tensor",
    "decode_attention": f"({_PAGED}, {_BOUNDS}) -> Tensor",
    "prefill_attention": f"({_PAGED}, {_BOUNDS}) -> Tensor",
    "prefill_attention_sm90": f"({_PAGED}, {_BOUNDS}) -> Tensor",
    "gemm": "(Tensor x, Tensor weight, Tensor? bias, str kernel, int tile, bool float32=False) -> Tensor",
    "draw": "(Tensor logits, Tensor columns) -> Tensor",
}


def implementations(library: Library) -> dict[str, Callable[..., Any]]:
    def attend(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(
            q: torch.Tensor, kv_cache: torch.Tensor, layer: int, tables: torch.Tensor, begins: torch.Tensor,
            starts: torch.Tensor, max_context: int, max_query: int, scale: float, window: int = 0,
            softcap: float = 0.0, sinks: torch.Tensor | None = None,
        ) -> torch.Tensor:  # fmt: skip
            paged = attention.PagedRows(tables, begins, starts, max_context, max_query)
            scores = attention.Scores(scale, window or None, softcap or None, sinks)
            return kernel(library, q, kv_cache, layer, paged, scores)

        return run

    def product(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: gemm.GemmKernel, tile: int,
        float32: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        dtype = torch.float32 if float32 else torch.bfloat16
        return gemm.gemm(library, x, weight, bias, kernel=kernel, tile=tile, out_dtype=dtype)

    def store_and_push(*arguments: Any) -> torch.Tensor:
        q, k, v, positions, table, kv_cache, layer, slots, *there = arguments
        peers = PeerRows(*there)
        return push.rope_store_and_push(library, q, k, v, positions, table, kv_cache, layer, slots, peers)

    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(library, *arguments)

    return {
        "rms_norm": bound(rows.rms_norm),
        "add_rms_norm": lambda *arguments: rows.add_rms_norm(library, *arguments)[0],
        "gated_mul": bound(rows.gated_mul),
        "rope_and_store": bound(cache.rope_and_store),
        "rope_store_and_push": store_and_push,
        "decode_attention": attend(attention.decode_attention),
        "prefill_attention": attend(attention.prefill_attention),
        "prefill_attention_sm90": attend(attention.prefill_attention_sm90),
        "gemm": product,
        "draw": bound(draw.draw_on_device),
    }


def fakes() -> dict[str, Callable[..., Any]]:
    def like(first: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return first.new_empty(first.shape)

    def half(gate_up: torch.Tensor, _: str) -> torch.Tensor:
        return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)

    def product(
        x: torch.Tensor, weight: torch.Tensor, bias: object, kernel: str, tile: int, float32: bool = False
    ) -> torch.Tensor:
        dtype = torch.float32 if float32 else torch.bfloat16
        return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)

    def tokens(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return logits.new_empty(logits.shape[0], dtype=torch.int64)

    found: dict[str, Callable[..., Any]] = dict.fromkeys(SCHEMAS, like)
    return found | {"gated_mul": half, "gemm": product, "draw": tokens}
