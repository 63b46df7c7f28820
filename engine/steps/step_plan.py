"""A step's batch as the tensors every layer of a torch model shares."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from engine.steps.batch import StepBatch
from engine.steps.peer_rows import PeerRows
from engine.steps.step_arrays import StepArrays


@dataclass(frozen=True, slots=True)
class StepBounds:
    """What sizes a launch before a device's arrays could be read. Nothing computed depends on them."""

    max_query: int
    """No sequence has more rows."""
    max_context: int
    """No row's position + 1 is above this."""
    leading_singles: int
    """So many sequences, from the first on, have one row each."""

    @classmethod
    def of(cls, batch: StepBatch) -> StepBounds:
        lengths = [len(part.token_ids) for part in batch.slices]
        ends = [part.start + length for part, length in zip(batch.slices, lengths, strict=True)]
        singles = next((index for index, length in enumerate(lengths) if length != 1), len(lengths))
        return cls(max(lengths, default=0), max(ends, default=0), singles)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """See `StepArrays`, whose memory they share."""

    token_ids: torch.Tensor
    """`[M]` int64."""
    positions: torch.Tensor
    """`[M]` int64, absolute."""
    slots: torch.Tensor
    """`[M]` int64: block id * block_tokens + offset, where the row's K and V go."""
    block_tables: torch.Tensor
    """`[S, max_blocks]` int32, padded with 0."""
    query_starts: torch.Tensor
    """`[S + 1]` int32: first row of each sequence, and M."""
    starts: torch.Tensor
    """`[S]` int32: absolute position of each sequence's first row."""
    prompt_ends: torch.Tensor
    """`[S]` int64: position of each sequence's first token that is not its prompt's; perhaps far beyond its rows."""
    logit_rows: torch.Tensor
    """int64: of each slice its last `num_logits` rows, in slice order."""
    bounds: StepBounds
    peers: PeerRows | None = None
    """Where rows are stored besides; None where all of them stay."""

    @classmethod
    def of(cls, batch: StepBatch, block_tokens: int) -> StepPlan:
        """See `StepArrays.of`."""
        arrays = StepArrays.of(batch, block_tokens)
        tensors = {field.name: torch.from_numpy(getattr(arrays, field.name)) for field in fields(arrays)}
        return cls(**tensors, bounds=StepBounds.of(batch), peers=PeerRows.of(batch, block_tokens))
