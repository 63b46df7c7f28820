"""Products of a model whose matrices are quantised in part: those by their own kernels, the others as they are."""

from __future__ import annotations

import itertools

import torch

from engine.ops.cuda.block_products import BlockProducts, BlockWeight
from engine.ops.signatures import LinearOp, LmHeadOp
from engine.ops.weight_matrix import QuantizedMatrix, WeightMatrix, stacked

MixedWeight = tuple[tuple[BlockWeight, ...] | torch.Tensor, ...]
"""Rows of a matrix in runs: quantised ones packed, others `[n, K]`."""


class MixedProducts:
    """The operations of `signatures` on weights of either make."""

    def __init__(self, blocks: BlockProducts, linear: LinearOp, lm_head: LmHeadOp) -> None:
        """`linear` and `lm_head` multiply what is not quantised, plain tensors."""
        self._blocks, self._linear, self._lm_head = blocks, linear, lm_head

    def pack(self, *parts: WeightMatrix) -> MixedWeight:
        """See `signatures.PackOp`."""
        runs = itertools.groupby(parts, key=lambda part: isinstance(part, QuantizedMatrix))
        return tuple(self._blocks.pack(*run) if is_quantised else stacked(*run) for is_quantised, run in runs)

    def rows(self, weight: MixedWeight, ids: torch.Tensor) -> torch.Tensor:
        """See `signatures.RowsOp`. Of a matrix in one run."""
        [run] = weight
        return run[ids] if isinstance(run, torch.Tensor) else self._blocks.rows(run, ids)

    def linear(self, x: torch.Tensor, weight: MixedWeight, bias: torch.Tensor | None) -> torch.Tensor:
        """See `signatures.LinearOp`."""
        found, first = [], 0
        for run in weight:
            columns = _rows_of(run)
            own = None if bias is None else bias[first : first + columns]
            if isinstance(run, torch.Tensor):
                found.append(self._linear(x, run, own))
            else:
                found.append(self._blocks.linear(x, run, own))
            first += columns
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def lm_head(self, x: torch.Tensor, weight: MixedWeight) -> torch.Tensor:
        """See `signatures.LmHeadOp`."""
        found = [
            self._lm_head(x, run) if isinstance(run, torch.Tensor) else self._blocks.lm_head(x, run) for run in weight
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _rows_of(run: tuple[BlockWeight, ...] | torch.Tensor) -> int:
    return run.shape[0] if isinstance(run, torch.Tensor) else sum(part.n for part in run)
