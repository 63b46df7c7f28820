"""A step's batch as the arrays that kernels walk."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from engine.steps.batch import StepBatch

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepArrays:
    """Rows of all slices one after another, M in total, of S sequences."""

    token_ids: Int64s
    """`[M]`."""
    positions: Int64s
    """`[M]`, absolute."""
    slots: Int64s
    """`[M]`: block id * block_tokens + offset, where the row's K and V go."""
    block_tables: Int32s
    """`[S, max_blocks]`, padded with 0."""
    query_starts: Int32s
    """`[S + 1]`: first row of each sequence, and M."""
    starts: Int32s
    """`[S]`: absolute position of each sequence's first row."""
    prompt_ends: Int64s
    """`[S]`: position of each sequence's first token that is not its prompt's; perhaps far beyond its rows."""
    logit_rows: Int64s
    """Of each slice its last `num_logits` rows, in slice order."""

    @classmethod
    def of(cls, batch: StepBatch, block_tokens: int) -> StepArrays:
        """Raises ValueError for a slice without tokens or with too few blocks for them."""
        slices = batch.slices
        lengths = [len(part.token_ids) for part in slices]
        if sum(lengths) == len(lengths) and all(lengths):
            return cls._of_single_rows(batch, lengths, block_tokens)
        block_tables = _block_tables(batch, lengths, block_tokens)
        query_starts = np.zeros(len(slices) + 1, dtype=np.int32)
        np.cumsum(lengths, out=query_starts[1:])
        starts = np.array([part.start for part in slices], dtype=np.int32)
        num_rows = int(query_starts[-1])
        sequence = np.repeat(np.arange(len(slices)), lengths)
        positions = np.arange(num_rows) + (starts - query_starts[:-1]).astype(np.int64)[sequence]
        block, offset = np.divmod(positions, block_tokens)
        ends = query_starts[1:].tolist()
        wanted = [row for end, part in zip(ends, slices, strict=True) for row in range(end - part.num_logits, end)]
        return cls(
            token_ids=np.fromiter(chain.from_iterable(part.token_ids for part in slices), np.int64, num_rows),
            positions=positions,
            slots=block_tables[sequence, block].astype(np.int64) * block_tokens + offset,
            block_tables=block_tables,
            query_starts=query_starts,
            starts=starts,
            prompt_ends=np.array([part.num_prompt_tokens for part in slices], dtype=np.int64),
            logit_rows=np.array(wanted, dtype=np.int64),
        )

    @classmethod
    def _of_single_rows(cls, batch: StepBatch, lengths: list[int], block_tokens: int) -> StepArrays:
        """A batch of which every slice is one token, as nearly all are: what numpy asks for a call would be most of
        the work."""
        slices = batch.slices
        block_tables = _block_tables(batch, lengths, block_tokens)
        positions = np.array([part.start for part in slices], dtype=np.int64)
        rows = np.arange(len(slices) + 1, dtype=np.int32)
        block, offset = np.divmod(positions, block_tokens)
        wanted = [row for row, part in enumerate(slices) if part.wants_logits or part.wants_all_logits]
        return cls(
            token_ids=np.array([part.token_ids[0] for part in slices], dtype=np.int64),
            positions=positions,
            slots=block_tables[rows[:-1], block].astype(np.int64) * block_tokens + offset,
            block_tables=block_tables,
            query_starts=rows,
            starts=positions.astype(np.int32),
            prompt_ends=np.array([part.num_prompt_tokens for part in slices], dtype=np.int64),
            logit_rows=np.array(wanted, dtype=np.int64),
        )


def _block_tables(batch: StepBatch, lengths: list[int], block_tokens: int) -> Int32s:
    tables = [part.block_table for part in batch.slices]
    counts = list(map(len, tables))
    for part, length, count in zip(batch.slices, lengths, counts, strict=True):
        if not length or count * block_tokens < part.start + length:
            raise ValueError(
                f"slice at {part.start} with {length} tokens and {count} blocks: expected at least one token and "
                f"blocks for {part.start + length} positions"
            )
    # Piece by piece, as the block pool has them: number by number takes longer than all else a step asks of the host.
    width = max(counts, default=0)
    pieces: list[array[int] | bytes] = []
    for table, count in zip(tables, counts, strict=True):
        pieces.append(table if isinstance(table, array) else array("i", table))
        pieces.append(bytes(4 * (width - count)))
    return np.frombuffer(bytearray().join(pieces), dtype=np.int32).reshape(len(tables), width)
