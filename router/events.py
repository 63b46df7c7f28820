"""What happens to a request and what is to be done about it, as plain data.

There is one `TokenRow` and one `Release` a token: structs, because making a frozen dataclass takes ten times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from wire.errors import SpliceError
from wire.sampling import Beam, FinishReason, TokenLogprobs

WorkerKey = tuple[str, int]
"""(worker id, incarnation): a restarted worker is another worker."""


@dataclass(frozen=True, slots=True)
class HandoffFigures:
    """What one KV hand-off cost, measured by the decode worker; times in seconds."""

    transport: str = ""
    kv_bytes: int = 0
    kv_blocks: int = 0
    copy_s: float = 0.0
    exposed_s: float = 0.0
    transport_fallbacks: int = 0
    blocks_refetched: int = 0
    blocks_pushed: int = 0


# Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picked:
    """The policy chose; no `prefill` means that decode computes the prompt itself."""

    decode: WorkerKey
    prefill: WorkerKey | None


@dataclass(frozen=True, slots=True)
class NoPair:
    """The policy found nobody to decode."""

    error: SpliceError


@dataclass(frozen=True, slots=True)
class Reserved:
    """Decode took memory for the request; it already holds the KV of the first `cached_tokens` tokens."""

    worker: WorkerKey
    attempt: int
    cached_tokens: int
    queue_s: float = 0.0


class TokenRow(msgspec.Struct, frozen=True):
    """Tokens `seq`, `seq + 1`, … of the answer; `logprobs` has one entry per token or is empty."""

    worker: WorkerKey
    attempt: int
    seq: int
    tokens: tuple[int, ...]
    finish: FinishReason = FinishReason.NONE
    logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int = 0
    handed_off: bool = False


@dataclass(frozen=True, slots=True)
class PromptScored:
    """Log probabilities of prompt tokens `first`, `first + 1`, …; the worker that computes the prompt sends them in
    order, before its first token."""

    worker: WorkerKey
    attempt: int
    first: int
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class BeamsFound:
    """A beam search is complete, best answer first."""

    worker: WorkerKey
    attempt: int
    beams: tuple[Beam, ...]
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class HandedOff:
    """Decode has fetched and verified all KV; the prefill worker is needed no more."""

    worker: WorkerKey
    attempt: int
    figures: HandoffFigures


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker gave up an attempt. `blamed` is a worker id, empty when the sender itself is at fault."""

    worker: WorkerKey
    attempt: int
    error: SpliceError
    retryable: bool
    blamed: str = ""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The session to this worker ended: everything it had in hand is gone."""

    worker: WorkerKey
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StopFound:
    """The text layer saw a stop string: the answer is complete."""


@dataclass(frozen=True, slots=True)
class ClientGone:
    """Nobody listens any more."""


@dataclass(frozen=True, slots=True)
class WorkersChanged:
    """A worker came or went; a request waiting for one may look again."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; see `RequestLifecycle.next_tick_s`."""


Event = (
    Picked
    | NoPair
    | Reserved
    | TokenRow
    | PromptScored
    | BeamsFound
    | HandedOff
    | Failed
    | WorkerLost
    | StopFound
    | ClientGone
    | WorkersChanged
    | Tick
)


# Actions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChoosePair:
    """Ask the policy; the answer comes back as `Picked` or `NoPair`."""

    excluded: frozenset[WorkerKey]


@dataclass(frozen=True, slots=True)
class SendReserve:
    worker: WorkerKey
    attempt: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SendPrefill:
    worker: WorkerKey
    attempt: int
    tokens: tuple[int, ...]
    skip_tokens: int


@dataclass(frozen=True, slots=True)
class SendGenerate:
    worker: WorkerKey
    attempt: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SendAttach:
    worker: WorkerKey
    attempt: int
    source: WorkerKey


@dataclass(frozen=True, slots=True)
class SendCancel:
    worker: WorkerKey
    attempt: int
    reason: str


class Release(msgspec.Struct, frozen=True):
    """Give these tokens to the client, in this order; they follow all tokens released before."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class Migrated:
    """For the record: the attempt before this one was given up."""

    attempt: int
    worker: WorkerKey
    error: SpliceError


@dataclass(frozen=True, slots=True)
class Finish:
    """Terminal: the answer is complete."""

    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Fail:
    """Terminal: the client gets this error."""

    error: SpliceError


Action = (
    ChoosePair | SendReserve | SendPrefill | SendGenerate | SendAttach | SendCancel | Release | Migrated | Finish | Fail
)
