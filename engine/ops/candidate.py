"""One implementation of one operation, as it offers itself for the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.ops.features import FEATURES, Feature
from engine.ops.names import OpName
from engine.ops.signatures import FusedRows, PackExpertsOp, PackOp, RowsOp


@dataclass(frozen=True, slots=True)
class Candidate:
    """`supports(dtype)` says whether it runs on this machine for weights and activations of that dtype, and `features`
    what it computes beyond the plain case. The highest `rank` wins; the reference has rank 0.

    `push` belongs to what writes the cache: the same computation, of the same bits, which stores rows a second time in
    a peer's. The rest belongs to `linear`, `lm_head` and `experts` only: without `pack` a weight is a plain tensor,
    `rows` goes with `pack`, `pack_experts` with `experts`, `fused` with `linear`, and `kinds` are the quantised types
    that are packed as they are.
    """

    op: OpName
    name: str
    fn: Callable[..., Any]
    supports: Callable[[torch.dtype], bool]
    rank: int
    features: frozenset[Feature] = frozenset()
    push: Callable[..., Any] | None = None
    pack: PackOp | None = None
    rows: RowsOp | None = None
    pack_experts: PackExpertsOp | None = None
    kinds: frozenset[str] = frozenset()
    fused: FusedRows | None = None

    def serves(self, dtype: torch.dtype, wanted: frozenset[Feature]) -> bool:
        """Whether it can be chosen for a model that wants these features, of whatever operations."""
        return self.supports(dtype) and wanted & FEATURES.get(self.op, frozenset()) <= self.features
