"""The norms that heads of queries and keys go through before they turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Weights `[head_dim]`, both of the model's dtype or both float32 (see `signatures.RmsNormOp`)."""

    q: torch.Tensor
    k: torch.Tensor
    eps: float

    def apart(
        self, rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor], q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`q` `[M, num_heads, head_dim]` and `k` normed by that operation, head by head."""
        return (
            rms_norm(q.reshape(-1, q.shape[-1]), self.q, self.eps).view(q.shape),
            rms_norm(k.reshape(-1, k.shape[-1]), self.k, self.eps).view(k.shape),
        )
