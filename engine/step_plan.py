"""A step's batch as the tensors every layer of the model shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.batch import StepBatch


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Rows of all slices one after another, M in total, of S sequences."""

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
    logit_rows: torch.Tensor
    """int64: last row of each slice that wants logits, in slice order."""

    @classmethod
    def of(cls, batch: StepBatch, block_tokens: int) -> StepPlan:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        query_starts = [0]
        for part in batch.slices:
            end = part.start + len(part.token_ids)
            if not part.token_ids or len(part.block_table) * block_tokens < end:
                raise ValueError(
                    f"slice at {part.start} with {len(part.token_ids)} tokens and {len(part.block_table)} blocks: "
                    f"expected at least one token and blocks for {end} positions"
                )
            token_ids.extend(part.token_ids)
            positions.extend(range(part.start, end))
            slots.extend(
                part.block_table[position // block_tokens] * block_tokens + position % block_tokens
                for position in range(part.start, end)
            )
            query_starts.append(len(token_ids))
        return cls(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            positions=torch.tensor(positions, dtype=torch.int64),
            slots=torch.tensor(slots, dtype=torch.int64),
            block_tables=_block_tables(batch),
            query_starts=torch.tensor(query_starts, dtype=torch.int32),
            starts=torch.tensor([part.start for part in batch.slices], dtype=torch.int32),
            logit_rows=torch.tensor(
                [last - 1 for last, part in zip(query_starts[1:], batch.slices, strict=True) if part.wants_logits],
                dtype=torch.int64,
            ),
        )


def _block_tables(batch: StepBatch) -> torch.Tensor:
    width = max((len(part.block_table) for part in batch.slices), default=0)
    rows = [[*part.block_table, *[0] * (width - len(part.block_table))] for part in batch.slices]
    return torch.tensor(rows, dtype=torch.int32).reshape(len(rows), width)
