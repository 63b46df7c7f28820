"""Where the rows of a step go besides the local cache, as kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.steps.batch import StepBatch


@dataclass(frozen=True, slots=True)
class PeerRows:
    """int64 `[M]` each."""

    caches: torch.Tensor
    """Addresses of caches of the local one's form, mapped here from another process; 0: the row stays."""
    slots: torch.Tensor
    """As `StepPlan.slots`, in that cache; negative: the row stays."""

    @classmethod
    def of(cls, batch: StepBatch, block_tokens: int) -> PeerRows | None:
        """None where no row of the step goes anywhere else."""
        if not any(part.peer is not None for part in batch.slices):
            return None
        num_rows = sum(len(part.token_ids) for part in batch.slices)
        caches, slots = np.zeros(num_rows, dtype=np.int64), np.full(num_rows, -1, dtype=np.int64)
        end = 0
        for part in batch.slices:
            first, end = end, end + len(part.token_ids)
            if part.peer is not None:
                caches[first:end] = part.peer.address
                slots[first:end] = part.peer.slots(part.start, end - first, block_tokens)
        return cls(torch.from_numpy(caches), torch.from_numpy(slots))
