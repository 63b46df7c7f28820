"""One engine step's work as plain data: what the scheduler hands to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from engine.steps.peer_blocks import PeerBlocks


class SequenceSlice(msgspec.Struct, frozen=True):
    """One request's part in one step."""

    token_ids: Sequence[int]
    """The query tokens, `query_len` of them, at least one. On a device the last may be one `not_drawn_yet`."""
    start: int
    """Absolute position of the first query token."""
    block_table: Sequence[int]
    """Blocks covering positions [0, start + query_len)."""
    wants_logits: bool
    """Whether the logits of the last query token are needed."""
    wants_all_logits: bool = False
    """Whether the logits of every query token are needed."""
    num_prompt_tokens: int = 1 << 62
    """Tokens of the request that are its prompt, so many at most: a model may compute those after it another way."""
    peer: PeerBlocks | None = None
    """Where its rows are stored besides; of a model that pushes (`PushingModel`)."""

    @property
    def num_logits(self) -> int:
        """Rows of logits this slice is answered with."""
        return len(self.token_ids) if self.wants_all_logits else int(self.wants_logits)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All slices of one step; prefill chunks and decode rows side by side, in any order."""

    slices: tuple[SequenceSlice, ...]


def not_drawn_yet(index: int) -> int:
    """What stands for token `index` of those drawn in the step before, while the host does not know it."""
    return -1 - index
