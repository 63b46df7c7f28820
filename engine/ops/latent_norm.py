"""The norm that latents go through before they are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LatentNorm:
    """Weight `[rank]`, of the model's dtype or float32 (see `signatures.RmsNormOp`)."""

    weight: torch.Tensor
    eps: float

    def apart(
        self, rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor], latents: torch.Tensor
    ) -> torch.Tensor:
        """`latents` `[M, rank]`, perhaps with gaps between rows, normed by that operation."""
        return rms_norm(latents.contiguous(), self.weight, self.eps)
