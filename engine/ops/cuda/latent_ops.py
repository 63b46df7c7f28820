"""Latent attention as the engine's operations: which rows of a step go to which kernel."""

from __future__ import annotations

import torch

from engine.ops.cuda.attention import PagedRows
from engine.ops.cuda.latent import LATENT_DIMS, absorb, attend_latents, expand
from engine.ops.cuda.latent_kernels import LatentKernels
from engine.ops.cuda.library import Library
from engine.spec import LatentAttentionSpec
from engine.steps.step_plan import StepBounds

_FEW_ROWS = 64
"""Rows of heads a block takes at most: with more of one sequence the kernel for many reads latents less often."""


def latent_obstacle(spec: LatentAttentionSpec) -> str | None:
    """Why the kernels do not compute this attention, in words; None when they do."""
    rank, rope = spec.kv_lora_rank, spec.qk_rope_head_dim
    if (rank, rope) not in LATENT_DIMS:
        made_for = " or ".join(f"{one} + {other}" for one, other in sorted(LATENT_DIMS))
        return f"latents have {rank} + {rope} dimensions, and attention kernels are made for {made_for}"
    if spec.qk_nope_head_dim % 8 or spec.v_head_dim % 8:
        return f"heads have {spec.qk_nope_head_dim} and {spec.v_head_dim} dimensions, and kernels take multiples of 8"
    return None


class LatentOps:
    """The operations of `engine.ops.signatures` that are latent attention's, bound to one library and its kernels."""

    def __init__(self, library: Library, kernels: LatentKernels) -> None:
        self._library, self._kernels = library, kernels

    @property
    def name(self) -> str:
        """Of attention's arithmetic."""
        return self._kernels.name

    def latent_attention(
        self,
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        block_tables: torch.Tensor,
        query_starts: torch.Tensor,
        starts: torch.Tensor,
        prompt_ends: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        *,
        bounds: StepBounds | None = None,
    ) -> torch.Tensor:
        """See `signatures.LatentAttentionOp`; needs `bounds`, and goes the absorbed way with every row, so that
        `prompt_ends` make no difference. Both kernels give the same bits: sequences that decode are split over their
        keys, prompts over their rows."""
        if bounds is None:
            raise ValueError("latent_attention: bounds are None, expected those of the step: a launch is sized by them")
        nope = q.shape[2] - (kv_cache.shape[5] - up.shape[2])
        absorbed, rotated = absorb(self._library, q[:, :, :nope], up), q[:, :, nope:]
        singles, context, many = bounds.leading_singles, bounds.max_context, bounds.max_query
        attended = torch.empty_like(absorbed)
        if singles:
            first = PagedRows(block_tables[:singles], query_starts[: singles + 1], starts[:singles], context, 1)
            self._attend(attended[:singles], absorbed[:singles], rotated[:singles], kv_cache, layer, first, scale)
        if singles < len(starts):
            rest = PagedRows(block_tables[singles:], query_starts[singles:] - singles, starts[singles:], context, many)
            self._attend(attended[singles:], absorbed[singles:], rotated[singles:], kv_cache, layer, rest, scale)
        return expand(self._library, attended, up, nope)

    def _attend(
        self,
        out: torch.Tensor,
        absorbed: torch.Tensor,
        rotated: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: int,
        rows: PagedRows,
        scale: float,
    ) -> None:
        few = rows.max_query == 1 or rows.max_query * absorbed.shape[1] <= _FEW_ROWS
        kernel = self._kernels.few if few else self._kernels.many
        attend_latents(self._library, kernel, absorbed, rotated, kv_cache, layer, rows, scale, out=out)
