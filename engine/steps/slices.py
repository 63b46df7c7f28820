"""From what was scheduled to what a model computes."""

from __future__ import annotations

from engine.scheduling.schedule_plan import ScheduledRequest
from engine.steps.batch import SequenceSlice
from engine.steps.peer_blocks import PeerBlocks


def slice_of(part: ScheduledRequest, block_tokens: int, peer: PeerBlocks | None) -> SequenceSlice:
    """A request's part of a step; `peer`: where its rows go besides."""
    request = part.request
    start, end = request.num_computed_tokens, request.num_computed_tokens + part.num_new_tokens
    return SequenceSlice(
        token_ids=request.tokens[start:end],
        start=start,
        block_table=request.block_ids[: -(-end // block_tokens)],
        wants_logits=part.completes,
        wants_all_logits=bool(part.scored),
        num_prompt_tokens=request.num_prompt_tokens,
        peer=peer,
    )
