"""From what was scheduled to what a model computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.scheduling.request import RequestKey
from engine.scheduling.schedule_plan import ScheduledRequest
from engine.steps.batch import SequenceSlice
from engine.steps.peer_blocks import PeerBlocks


def slices_of(
    scheduled: Iterable[ScheduledRequest], block_tokens: int, peers: Mapping[RequestKey, PeerBlocks]
) -> tuple[SequenceSlice, ...]:
    """A step's; `peers`: where the rows of which requests go besides."""
    return tuple(_slice(part, block_tokens, peers.get(part.request.key)) for part in scheduled)


def _slice(part: ScheduledRequest, block_tokens: int, peer: PeerBlocks | None) -> SequenceSlice:
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
