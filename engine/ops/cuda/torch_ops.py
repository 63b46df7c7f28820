"""The kernels as torch's own operators, `torch.ops.splice.*`, with fake implementations, so that `torch.compile` and
`torch.export` go through them by shapes alone.

Nothing here computes: each calls the function of this package that does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.ops.cuda import attention, block_operators, cache, draw, experts, gemm, latent, rows, torch_fp8
from engine.ops.cuda.library import Library
from engine.ops.cuda.route import route
from engine.spec import Activation, RoutingSpec
from wire.errors import ErrorCode, SpliceError

NAMESPACE = "splice"
_PAGED = "Tensor q, Tensor kv_cache, int layer, Tensor block_tables, Tensor query_starts, Tensor starts"
_BOUNDS = "int max_context, int max_query, float scale, int window=0, float softcap=0.0, Tensor? sinks=None"
_LATENT = (
    "Tensor absorbed, Tensor rotated, Tensor kv_cache, int layer, Tensor block_tables, Tensor query_starts,"
    " Tensor starts, int max_context, int max_query, float scale"
)
_SCHEMAS = {
    "rms_norm": "(Tensor x, Tensor weight, float eps) -> Tensor",
    "add_rms_norm": "(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor",
    "gated_mul": "(Tensor gate_up, str activation) -> Tensor",
    "rope_and_store": "(Tensor q, Tensor k, Tensor v, Tensor positions, Tensor cos_sin, Tensor(a!) kv_cache, int layer,"
    " Tensor slots) -> Tensor",
    "decode_attention": f"({_PAGED}, {_BOUNDS}) -> Tensor",
    "prefill_attention": f"({_PAGED}, {_BOUNDS}) -> Tensor",
    "store_latents": "(Tensor(a!) q, Tensor latents, Tensor keys, Tensor positions, Tensor cos_sin,"
    " Tensor(b!) kv_cache, int layer, Tensor slots, Tensor? norm=None, float eps=0.0) -> ()",
    "absorb": "(Tensor q, Tensor up) -> Tensor",
    "latent_decode": f"({_LATENT}) -> Tensor",
    "latent_prefill": f"({_LATENT}) -> Tensor",
    "expand": "(Tensor latents, Tensor up, int nope) -> Tensor",
    "gemm": "(Tensor x, Tensor weight, Tensor? bias, str kernel, int tile, bool float32=False) -> Tensor",
    "draw": "(Tensor logits, Tensor columns) -> Tensor",
    **block_operators.SCHEMAS,
    **torch_fp8.SCHEMAS,
    "route": "(Tensor logits, Tensor? score_bias, int top_k, str scores, bool normalise, float scale=1.0,"
    " int num_groups=1, int top_groups=1, str group_score='max') -> (Tensor, Tensor)",
    "experts": "(Tensor x, Tensor experts, Tensor weights, Tensor gate_up, Tensor down, str activation,"
    " Tensor? gate_up_bias=None, Tensor? down_bias=None, Tensor? shared=None, str kernel='grouped_gemm') -> Tensor",
}
_owner: list[tuple[Library, torch.library.Library]] = []
"""Of this process, one at most: torch's operators are the process's too."""


def register(library: Library) -> None:
    """Makes the operators, on this library; with the same one again nothing. Raises SpliceError for another."""
    if _owner:
        if _owner[0][0].path != library.path:
            raise SpliceError(
                ErrorCode.BAD_SETTING,
                f"torch.ops.{NAMESPACE} stands on {_owner[0][0].path}, not on {library.path}: expected one library a"
                " process",
            )
        return
    kind = "CUDA" if library.device_type == "cuda" else "CPU"
    ours = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
    real = _implementations(library) | torch_fp8.implementations(library)
    fakes = _fakes() | torch_fp8.fakes()
    for name, schema in _SCHEMAS.items():
        ours.define(name + schema)  # type: ignore[no-untyped-call]
        ours.impl(name, real[name], kind)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"{NAMESPACE}::{name}", fakes[name], lib=ours)
    _owner.append((library, ours))


def _implementations(library: Library) -> dict[str, Callable[..., Any]]:
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

    def store(
        q: torch.Tensor, latents: torch.Tensor, keys: torch.Tensor, at: torch.Tensor, cos_sin: torch.Tensor,
        kv_cache: torch.Tensor, layer: int, slots: torch.Tensor, norm: torch.Tensor | None = None, eps: float = 0.0,
    ) -> None:  # fmt: skip
        normed = None if norm is None else latent.LatentNorm(norm, eps)
        latent.store_latents(library, q, latents, keys, at, cos_sin, kv_cache, layer, slots, normed)

    def attend_latents(kernel: latent.LatentKernel) -> Callable[..., torch.Tensor]:
        def run(
            absorbed: torch.Tensor, rotated: torch.Tensor, kv_cache: torch.Tensor, layer: int, tables: torch.Tensor,
            begins: torch.Tensor, starts: torch.Tensor, max_context: int, max_query: int, scale: float,
        ) -> torch.Tensor:  # fmt: skip
            paged = attention.PagedRows(tables, begins, starts, max_context, max_query)
            return latent.attend_latents(library, kernel, absorbed, rotated, kv_cache, layer, paged, scale)

        return run

    def product(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kernel: gemm.GemmKernel, tile: int,
        float32: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        dtype = torch.float32 if float32 else torch.bfloat16
        return gemm.gemm(library, x, weight, bias, kernel=kernel, tile=tile, out_dtype=dtype)

    def choose(
        logits: torch.Tensor, score_bias: torch.Tensor | None, top_k: int, scores: Any, normalise: bool,
        scale: float = 1.0, num_groups: int = 1, top_groups: int = 1, group_score: Any = "max",
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        spec = RoutingSpec(logits.shape[1], top_k, scores, normalise, scale, num_groups, top_groups, group_score)
        return route(library, spec, logits, score_bias)

    def mixture(
        x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
        activation: Activation, gate_up_bias: torch.Tensor | None = None, down_bias: torch.Tensor | None = None,
        shared: torch.Tensor | None = None, kernel: experts.GroupedKernel = "grouped_gemm",
    ) -> torch.Tensor:  # fmt: skip
        packed = experts.ExpertStacks(gate_up, down, gate_up_bias, down_bias)
        return experts.experts(library, x, ids, weights, packed, activation, shared, kernel=kernel)

    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: function(library, *arguments)

    return {
        "rms_norm": bound(rows.rms_norm),
        "add_rms_norm": lambda *arguments: rows.add_rms_norm(library, *arguments)[0],
        "gated_mul": bound(rows.gated_mul),
        "rope_and_store": bound(cache.rope_and_store),
        "decode_attention": attend(attention.decode_attention),
        "prefill_attention": attend(attention.prefill_attention),
        "store_latents": store,
        "absorb": bound(latent.absorb),
        "latent_decode": attend_latents("latent_decode"),
        "latent_prefill": attend_latents("latent_prefill"),
        "expand": bound(latent.expand),
        "gemm": product,
        "draw": bound(draw.draw_on_device),
        **block_operators.implementations(library),
        "route": choose,
        "experts": mixture,
    }


def _fakes() -> dict[str, Callable[..., Any]]:
    """Shapes and dtypes of results."""

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

    def choices(logits: torch.Tensor, _: object, top_k: int, *__: object, **___: object) -> Any:
        chosen = logits.new_empty(logits.shape[0], top_k, dtype=torch.int64)
        return chosen, torch.empty_like(chosen, dtype=torch.float32)

    def nothing(*_: object) -> None:
        return None

    def absorbed(q: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return q.new_empty(q.shape[0], q.shape[1], up.shape[2])

    def expanded(latents: torch.Tensor, up: torch.Tensor, nope: int) -> torch.Tensor:
        return latents.new_empty(latents.shape[0], latents.shape[1], up.shape[1] - nope)

    fakes: dict[str, Callable[..., Any]] = dict.fromkeys(_SCHEMAS, like)
    own = {"gated_mul": half, "gemm": product, "draw": tokens, "route": choices}
    latents = {"store_latents": nothing, "absorb": absorbed, "expand": expanded}
    return fakes | own | latents | block_operators.fakes()
