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
    if not peers:
        return tuple([_slice(part, block_tokens, None) for part in scheduled])
    return tuple([_slice(part, block_tokens, peers.get(part.request.key)) for part in scheduled])


def _slice(part: ScheduledRequest, block_tokens: int, peer: PeerBlocks | None) -> SequenceSlice:
    request = part.request
    start, end = request.num_computed_tokens, request.num_computed_tokens + part.num_new_tokens
    return SequenceSlice(
        request.tokens[start:end],
        start,
        request.block_ids[: -(-end // block_tokens)],
        part.completes,
        bool(part.scored),
        request.num_prompt_tokens,
        peer,
    )
