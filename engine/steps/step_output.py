"""What one step produced, as plain data for the worker to send on.

What there is one of a token is a struct, because making a frozen dataclass takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from engine.blocks.block_copy import BlockCopy, CopyKind
from engine.scheduling.request import RequestKey
from wire.errors import SpliceError
from wire.sampling import Beam, FinishReason, TokenLogprobs


class TokenRow(msgspec.Struct, frozen=True):
    """The new tokens of one request; none at all where it turns out to have ended before."""

    key: RequestKey
    seq: int
    """Index in the answer of the first token here (its position less `num_prompt_tokens`)."""
    tokens: tuple[int, ...]
    finish: FinishReason
    cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    handed_off: bool = False
    """The request goes on at whoever fetches its KV."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """A RESERVE request got its blocks."""

    key: RequestKey
    cached_tokens: int
    """Leading tokens whose KV is here already: `skip_blocks` whole blocks."""
    block_ids: tuple[int, ...]
    """Blocks of all its tokens, the leading `skip_blocks` of them not to be written. The growth block is not named."""
    skip_blocks: int


@dataclass(frozen=True, slots=True)
class ComputedBlocks:
    """Blocks of a PREFILL request that are complete and may be read until `Engine.release_hold`."""

    key: RequestKey
    first_block: int
    """Index within the request of the first block named here."""
    block_ids: tuple[int, ...]
    num_tokens: int
    """Tokens, counted from the start of the request, whose KV is complete."""
    is_last: bool
    """No more will follow; only then the last block may be partial."""
    pushed_from: int | None = None
    """Of these blocks, those from this index on were stored in a peer's cache besides; None: none of them."""
    excess_s: float = 0.0
    """The request's share, by rows, of how much longer its steps took so far than was predicted."""


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """Log probabilities of prompt tokens, each given those before it; pieces of a request ascend without gaps."""

    key: RequestKey
    first: int
    """Index in the prompt of the first token described, from 1."""
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class BeamsFound:
    """A beam search is over; nothing of it was reported before."""

    key: RequestKey
    beams: tuple[Beam, ...]
    """Best first."""
    cached_tokens: int


@dataclass(slots=True)
class StepOutput:
    """Everything that became true in one step, each list in the order it happened."""

    rows: list[TokenRow] = field(default_factory=list)
    scored: list[ScoredPrompt] = field(default_factory=list)
    """All of a request's come before, or with, its first row."""
    beams: list[BeamsFound] = field(default_factory=list)
    reserved: list[Reservation] = field(default_factory=list)
    computed: list[ComputedBlocks] = field(default_factory=list)
    failed: list[tuple[RequestKey, SpliceError]] = field(default_factory=list)


@dataclass(slots=True)
class EngineStats:
    """Counters since start."""

    steps: int = 0
    """Steps that computed something."""
    max_batch_rows: int = 0
    """Most requests computed in one step."""
    prompt_tokens: int = 0
    """Prompt tokens computed here, recomputation after preemption included."""
    generated_tokens: int = 0
    prefix_hit_tokens: int = 0
    """Prompt tokens not computed because a request found them cached when first admitted."""
    preemptions: int = 0
    copied_blocks: int = 0
    """Blocks copied within the pool, for forks and partly shared prefixes."""
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0
    longest_step_s: float = 0.0

    def count_copies(self, copies: Iterable[BlockCopy]) -> None:
        for copy in copies:
            self.copied_blocks += copy.kind is CopyKind.WITHIN
            self.swapped_out_blocks += copy.kind is CopyKind.OUT
            self.swapped_in_blocks += copy.kind is CopyKind.IN
