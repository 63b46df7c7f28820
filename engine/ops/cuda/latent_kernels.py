"""Which kernels attend over latents: one arithmetic for prompts and what is decoded, and the faster kernels of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from engine.ops.cuda.attention import PagedRows
from engine.ops.cuda.latent import LatentKernel, attend_latents
from engine.ops.cuda.library import Library

_log = logging.getLogger(__name__)
_CLOSE = 0.01
"""By norms: results of kernels that round differently are nearer than this, those of one that is wrong are not."""


@dataclass(frozen=True, slots=True)
class LatentKernels:
    """By how many rows a sequence has; `name` is that of the arithmetic, the same in both."""

    few: LatentKernel
    many: LatentKernel
    name: str


EVERYWHERE = LatentKernels("latent_decode", "latent_prefill", "cuda")
"""On Ampere and newer."""


def choice_of(*, same: bool, close: bool, consistent: bool) -> LatentKernels:
    """`same`: whether Hopper's kernels give a row the bits that those for all GPUs give it; `close`: whether they
    differ by rounding alone; `consistent`: whether Hopper's two give it the same bits. They take every shape that the
    others take, so that no arithmetic needs both."""
    if not consistent or not close:
        return EVERYWHERE
    return LatentKernels("latent_sm90_decode", "latent_sm90_prefill", EVERYWHERE.name if same else "latent_sm90")


def latent_kernels(library: Library, *, is_hopper: bool) -> LatentKernels:
    """Asked of the GPU rather than assumed, because kernels differ in the instructions that multiply."""
    if not is_hopper or not library.has("latent_sm90_decode"):
        return EVERYWHERE
    heads, tokens, rank, rope, context, block = 3, 2, 512, 64, 1090, 64
    generator, device = torch.Generator().manual_seed(1), library.device_type

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16().to(device)

    count = -(-context // block)
    q, cache = drawn(tokens, heads, rank + rope), drawn(count, 1, 1, 1, block, rank + rope)
    tables = torch.arange(count, dtype=torch.int32, device=device).unsqueeze(0)
    begins, starts = (torch.tensor(at, dtype=torch.int32, device=device) for at in ([0, tokens], [context - tokens]))
    paged = PagedRows(tables, begins, starts, context, tokens)

    def made(kernel: LatentKernel) -> torch.Tensor:
        scale = (rank + rope) ** -0.5
        return attend_latents(library, kernel, q[:, :, :rank], q[:, :, rank:], cache, 0, paged, scale)

    here, few, many = made("latent_decode"), made("latent_sm90_decode"), made("latent_sm90_prefill")
    apart = float((few.float() - here.float()).norm() / here.float().norm())
    choice = choice_of(same=torch.equal(few, here), close=apart < _CLOSE, consistent=torch.equal(few, many))
    if choice is EVERYWHERE:
        _log.warning(
            "latent attention: Hopper's kernels are %.2g apart from those for all GPUs and %s; they are not taken",
            apart,
            "agree with each other" if torch.equal(few, many) else "do not agree with each other",
        )
    else:
        _log.info("latent attention: %s and %s, arithmetic %s", choice.few, choice.many, choice.name)
    return choice
