"""Operators of attention over latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch

from engine.ops.cuda import latent
from engine.ops.cuda.attention import PagedRows
from engine.ops.cuda.library import Library
from engine.ops.latent_norm import LatentNorm

_LATENT = (
    "Tensor absorbed, Tensor rotated, Tensor kv_cache, int layer, Tensor block_tables, Tensor query_starts,"
    " Tensor starts, int max_context, int max_query, float scale"
)
_ATTENTION: tuple[latent.LatentKernel, ...] = get_args(latent.LatentKernel)
SCHEMAS = {
    "store_latents": "(Tensor(a!) q, Tensor latents, Tensor keys, Tensor positions, Tensor cos_sin,"
    " Tensor(b!) kv_cache, int layer, Tensor slots, Tensor? norm=None, float eps=0.0) -> ()",
    "absorb": "(Tensor q, Tensor up) -> Tensor",
    "expand": "(Tensor latents, Tensor up, int nope) -> Tensor",
} | dict.fromkeys(_ATTENTION, f"({_LATENT}) -> Tensor")


def implementations(library: Library) -> dict[str, Callable[..., Any]]:
    def store(
        q: torch.Tensor, latents: torch.Tensor, keys: torch.Tensor, at: torch.Tensor, cos_sin: torch.Tensor,
        kv_cache: torch.Tensor, layer: int, slots: torch.Tensor, norm: torch.Tensor | None = None, eps: float = 0.0,
    ) -> None:  # fmt: skip
        normed = None if norm is None else LatentNorm(norm, eps)
        latent.store_latents(library, q, latents, keys, at, cos_sin, kv_cache, layer, slots, normed)

    def attend_latents(kernel: latent.LatentKernel) -> Callable[..., torch.Tensor]:
        def run(
            absorbed: torch.Tensor, rotated: torch.Tensor, kv_cache: torch.Tensor, layer: int, tables: torch.Tensor,
            begins: torch.Tensor, starts: torch.Tensor, max_context: int, max_query: int, scale: float,
        ) -> torch.Tensor:  # fmt: skip
            paged = PagedRows(tables, begins, starts, max_context, max_query)
            return latent.attend_latents(library, kernel, absorbed, rotated, kv_cache, layer, paged, scale)

        return run

    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(library, *arguments)

    others = {"store_latents": store, "absorb": bound(latent.absorb), "expand": bound(latent.expand)}
    return others | {kernel: attend_latents(kernel) for kernel in _ATTENTION}


def fakes() -> dict[str, Callable[..., Any]]:
    def like(first: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return first.new_empty(first.shape)

    def nothing(*_: object) -> None:
        return None

    def absorbed(q: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return q.new_empty(q.shape[0], q.shape[1], up.shape[2])

    def expanded(latents: torch.Tensor, up: torch.Tensor, nope: int) -> torch.Tensor:
        return latents.new_empty(latents.shape[0], latents.shape[1], up.shape[1] - nope)

    found: dict[str, Callable[..., Any]] = dict.fromkeys(SCHEMAS, like)
    return found | {"store_latents": nothing, "absorb": absorbed, "expand": expanded}
