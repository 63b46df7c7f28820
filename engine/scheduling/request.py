"""One request as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from wire.block_hash import ROOT, block_hash, prompt_end_hash
from wire.sampling import SamplingParams

if TYPE_CHECKING:
    from engine.sampling.sampler import SamplingRow
    from wire.text.answer_text import AnswerText

RequestKey = tuple[int, int]
"""(request, attempt): two attempts of one request are two requests to an engine."""


class RequestKind(Enum):
    """Which part of a request this engine computes."""

    GENERATE = "generate"
    """Everything."""
    PREFILL = "prefill"
    """The prompt and the first token; then the blocks are held for whoever fetches them."""
    RESERVE = "reserve"
    """Everything after a first token whose KV comes from outside, into blocks granted beforehand."""


class RequestStatus(Enum):
    """Where a request stands; a request that ended, or failed, is forgotten."""

    WAITING = "waiting"
    """No blocks yet, or none any more (preempted)."""
    RUNNING = "running"
    RESERVED = "reserved"
    """Blocks granted; their KV is on its way."""
    HELD = "held"
    """Computed; blocks lent out under a lease."""
    DRAINING = "draining"
    """Ended; blocks kept until no copy can write to them."""


@dataclass(slots=True, eq=False)
class Request:
    """State of one request. The scheduler alone changes it, once submitted."""

    key: RequestKey
    tokens: list[int]
    """The prompt, tokens emitted by earlier attempts, and tokens generated here."""
    num_prompt_tokens: int
    """Of `tokens`, how many are the prompt: the same in every attempt."""
    sampling: SamplingParams
    kind: RequestKind = RequestKind.GENERATE
    root: bytes = ROOT
    """Parent hash of the first block (`wire.block_hash.root_hash`)."""
    priority: int = 0
    """Lower runs first; waiting makes up for it (`EngineConfig.ageing_steps`)."""
    skip_tokens: int = 0
    """PREFILL: leading tokens, whole blocks, that the fetching side already holds: not announced."""

    num_branches: int = 1
    """Branches, this one included, of which none goes on before all have come as far (a beam)."""
    answer_text: AnswerText | None = field(default=None, repr=False)
    """A beam search with stop strings: the text of no tokens, which knows them."""

    status: RequestStatus = RequestStatus.WAITING
    num_computed_tokens: int = 0
    """Leading tokens whose KV is in `block_ids`."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache when first admitted."""
    num_scored_tokens: int = 0
    """Prompt tokens behind which the log probability of the next one has been reported, where that is asked for."""
    block_ids: Sequence[int] = ()
    """Live view of the block table; the block pool owns it."""

    arrival: int = -1
    """Position in the order of submission, given by the scheduler; a fork has its parent's."""
    rank: int = 0
    """Step of arrival, put off by the priority; given by the scheduler, kept through preemption, a fork has its
    parent's."""
    was_admitted: bool = False
    num_steps_waived: int = 0
    """Steps it waited, though there was room, for a block that another computed."""
    kept: Sequence[bytes] = ()
    """Preempted: names of the contents that are kept for when it goes on."""
    num_announced_blocks: int = 0
    pushed_from: int | None = None
    """PREFILL: from this position on all rows computed so far were stored in a peer's cache besides; None: not all."""
    excess_s: float = 0.0
    """Its share, by rows, of how much longer its steps took than was predicted."""
    lease_ended: bool = False
    """PREFILL: the lease ended before the computation did; nothing to hold afterwards."""
    in_flight: bool = False
    """A device computes a part of it at this moment: what it has to say is not known yet."""
    sampling_row: SamplingRow | None = field(default=None, repr=False)
    """How its tokens are drawn, prepared by the engine when the first of them is."""
    answer_is_apart: bool = False
    """The model computes what follows a prompt another way (`CausalLM.answer_is_apart`): blocks that reach past the
    prompt are found only by requests whose prompt is as long. Given before the first hash, by engine or parent."""
    _hashes: list[bytes] = field(default_factory=list, repr=False)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_known_tokens(self) -> int:
        """All but a last one that is `not_drawn_yet`."""
        return len(self.tokens) - (self.tokens[-1] < 0)

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of the answer so far, those of earlier attempts included."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def scores_prompt(self) -> bool:
        """Log probabilities of its prompt are still to be computed here, which needs the logits of every position."""
        return self.sampling.prompt_logprobs is not None and self.num_scored_tokens < self.num_prompt_tokens - 1

    @property
    def is_computed_elsewhere(self) -> bool:
        """Its KV comes from outside. Once activated a request is a GENERATE like any other."""
        return self.kind is RequestKind.RESERVE

    @property
    def seniority(self) -> tuple[int, int]:
        """Sorts requests, most senior first; constant."""
        return (self.rank, self.arrival)

    def hashes(self, num_blocks: int, block_tokens: int) -> list[bytes]:
        """Chained hashes of the first `num_blocks` full blocks of `tokens`; computed once each."""
        while len(self._hashes) < num_blocks:
            index = len(self._hashes)
            start, end = index * block_tokens, (index + 1) * block_tokens
            parent = self._hashes[-1] if index else self.root
            if self.answer_is_apart:
                parent = self.parent_of(index, end, block_tokens)
            self._hashes.append(block_hash(parent, self.tokens[start:end]))
        return self._hashes[:num_blocks]

    def parent_of(self, index: int, end: int, block_tokens: int) -> bytes:
        """Parent hash of the content of block `index`, of which tokens up to `end` are looked at.

        Where answers are computed another way, one that has a part of the answer has a parent of its own. The blocks
        before must have been hashed.
        """
        previous = self._hashes[index - 1] if index else self.root
        if self.answer_is_apart and index * block_tokens <= self.num_prompt_tokens < end:
            return prompt_end_hash(previous, self.num_prompt_tokens)
        return previous
