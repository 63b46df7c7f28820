"""The life of one request: events in, actions out. No clock, no I/O, no randomness.

`NEW → RESERVE(decode) → PREFILL(prefill) + ATTACH(decode) → STREAMING → END`, or `NEW → STREAMING` when decode
computes the prompt itself. Any loss or retryable failure starts the next attempt with the prompt and the tokens already
released; because a token depends on model, prompt, parameters, seed and position only, it continues the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from router.blame import REFUSALS, Blame, is_public
from router.events import (
    Action,
    BeamsFound,
    ChoosePair,
    ClientGone,
    Event,
    Fail,
    Failed,
    Finish,
    HandedOff,
    HandoffFigures,
    Migrated,
    NoPair,
    Picked,
    PromptScored,
    Release,
    Reserved,
    SendAttach,
    SendCancel,
    SendGenerate,
    SendPrefill,
    SendReserve,
    StopFound,
    Tick,
    TokenRow,
    WorkerKey,
    WorkerLost,
    WorkersChanged,
)
from router.wanted import TOKENS, Wanted
from wire.errors import ErrorCode, SpliceError
from wire.sampling import Beam, FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class LifecycleLimits:
    """Bounds of every request; times in seconds."""

    max_attempts: int = 4
    no_worker_grace_s: float = 0.0
    """How long a request waits for a decode worker to appear before it fails."""
    max_local_prefill_tokens: int = 0
    """Prompts with at most this many uncached tokens are computed on the decode worker."""


class Phase(Enum):
    NEW = "new"
    RESERVE = "reserve"
    PREFILL = "prefill"
    STREAMING = "streaming"
    END = "end"


class RequestLifecycle:
    """One request. Feed it `handle(event, now_s)`; carry out the actions returned, in order.

    `emitted` only ever grows, by tokens released strictly in the order of their seq. Exactly one `Finish` or `Fail` is
    returned over the whole life; after it every event is ignored.
    """

    def __init__(
        self, prompt: Sequence[int], limits: LifecycleLimits, *, deadline_s: float, wanted: Wanted = TOKENS
    ) -> None:
        self.prompt = tuple(prompt)
        self.limits = limits
        self.wanted = wanted
        self.deadline_s = deadline_s
        self.phase = Phase.NEW
        self.attempt = 1
        self.emitted: list[int] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        """Of prompt tokens 1, 2, …, as far as they came."""
        self.beams: tuple[Beam, ...] = ()
        self.decode: WorkerKey | None = None
        self.prefill: WorkerKey | None = None
        self.cached_tokens = 0
        self.queue_s = 0.0
        self.handoff = HandoffFigures()
        self.dropped_tokens = 0
        self._ahead: dict[int, tuple[int, TokenLogprobs | None]] = {}
        self._finish: tuple[int, FinishReason, WorkerKey] | None = None
        self._prefill_done = False
        self._decode_ready = False
        self._blame = Blame()
        self._waiting_since_s: float | None = None

    def start(self) -> list[Action]:
        return [ChoosePair(frozenset())]

    @property
    def next_tick_s(self) -> float:
        """When the next `Tick` is due, unless the request has ended."""
        if self._waiting_since_s is None:
            return self.deadline_s
        return min(self.deadline_s, self._waiting_since_s + self.limits.no_worker_grace_s)

    @property
    def failures(self) -> int:
        """Attempts given up."""
        return self._blame.failures

    @property
    def ended(self) -> bool:
        return self.phase is Phase.END

    def handle(self, event: Event, now_s: float) -> list[Action]:  # noqa: PLR0912 - one case per event
        if self.phase is Phase.END:
            return []
        if isinstance(event, TokenRow):  # one a token: not behind everything that may happen once
            if self._is_current(event.worker, event.attempt):
                return self._on_row(event)
            self.dropped_tokens += len(event.tokens)
            return []
        match event:
            case Picked():
                return self._on_picked(event)
            case NoPair(error):
                return self._on_no_pair(error, now_s)
            case WorkerLost(worker, reason):
                return self._on_lost(worker, reason)
            case StopFound():
                return [*self._cancel_all("stop string found"), *self._end(Finish(FinishReason.STOP))]
            case ClientGone():
                gone = SpliceError(ErrorCode.CANCELLED, "the client closed the request")
                return [*self._cancel_all("client gone"), *self._end(Fail(gone))]
            case WorkersChanged():
                return [self._choose()] if self._waiting_since_s is not None else []
            case Tick():
                return self._on_tick(now_s)
            case _:
                pass
        if not self._is_current(event.worker, event.attempt):
            return []
        match event:
            case Reserved():
                return self._on_reserved(event)
            case PromptScored():
                return self._on_scored(event)
            case BeamsFound():
                return self._on_beams(event)
            case HandedOff(_, _, figures):
                self.handoff = figures
                self._decode_ready = True
                return []
            case Failed():
                return self._on_failed(event)

    def _is_current(self, worker: WorkerKey, attempt: int) -> bool:
        return attempt == self.attempt and worker in (self.decode, self.prefill)

    def abandon(self, error: SpliceError) -> list[Action]:
        """Ends the request with an error that came from outside its life cycle."""
        return [] if self.ended else [*self._cancel_all("abandoned"), *self._end(Fail(error))]

    def check(self) -> None:
        """Raises AssertionError when an invariant does not hold."""
        if any(seq <= len(self.emitted) - 1 for seq in self._ahead):
            raise AssertionError("a token waits for its turn although its turn is over")
        if len(self.emitted) in self._ahead:
            raise AssertionError("the next token is known but was not released")
        if self.phase in (Phase.RESERVE, Phase.PREFILL) and (self.decode is None or self.prefill is None):
            raise AssertionError(f"{self.phase} without a pair")
        if self.phase is Phase.STREAMING and self.decode is None:
            raise AssertionError("streaming from nobody")

    # Choosing ---------------------------------------------------------------------------------------------------------

    def _choose(self) -> ChoosePair:
        return ChoosePair(frozenset(self._blame.excluded))

    def _tokens(self) -> tuple[int, ...]:
        return self.prompt + tuple(self.emitted)

    def _on_picked(self, event: Picked) -> list[Action]:
        if self.phase is not Phase.NEW:
            return []
        self._waiting_since_s = None
        self.decode, self.prefill = event.decode, event.prefill
        tokens = self._tokens()
        alone = event.prefill is None or (self.wanted.beams and self.wanted.ends_at_once)
        if alone or len(tokens) <= self.limits.max_local_prefill_tokens:
            return [self._generate_locally()]
        self.phase = Phase.RESERVE
        return [SendReserve(event.decode, self.attempt, tokens)]

    def _generate_locally(self) -> SendGenerate:
        assert self.decode is not None  # noqa: S101 - callers have just set or checked it
        self.prefill = None
        self.phase = Phase.STREAMING
        return SendGenerate(self.decode, self.attempt, self._tokens())

    def _on_no_pair(self, error: SpliceError, now_s: float) -> list[Action]:
        if self.phase is not Phase.NEW:
            return []
        last = self._blame.last_error
        if last is not None and last.code in REFUSALS:
            return self._end(Fail(last))
        if self._blame.forgive():
            return [self._choose()]  # a bounded second try there beats giving up
        if last is not None and is_public(last):
            return self._end(Fail(last))
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if now_s - self._waiting_since_s >= self.limits.no_worker_grace_s:
            return self._end(Fail(error))
        return []

    def _on_tick(self, now_s: float) -> list[Action]:
        if now_s >= self.deadline_s:
            late = SpliceError(
                ErrorCode.DEADLINE_EXCEEDED,
                f"the request did not finish in time; {len(self.emitted)} tokens were sent (phase {self.phase.value})",
            )
            return [*self._cancel_all("deadline exceeded"), *self._end(Fail(late))]
        return [self._choose()] if self._waiting_since_s is not None else []

    # The pair at work -------------------------------------------------------------------------------------------------

    def _on_reserved(self, event: Reserved) -> list[Action]:
        if self.phase is not Phase.RESERVE or event.worker != self.decode or self.prefill is None:
            return []
        self.queue_s += event.queue_s
        if not self.emitted:
            self.cached_tokens = min(event.cached_tokens, len(self.prompt))
        tokens = self._tokens()
        cached = 0 if self.scores_prompt else event.cached_tokens
        if len(tokens) - cached <= self.limits.max_local_prefill_tokens:
            # A worker takes one submit per attempt, so the reservation is handed back under its own number first.
            cancel = SendCancel(event.worker, self.attempt, "computed where it is cached")
            self.attempt += 1
            return [cancel, self._generate_locally()]
        self.phase = Phase.PREFILL
        return [
            SendPrefill(self.prefill, self.attempt, tokens, event.cached_tokens),
            SendAttach(event.worker, self.attempt, self.prefill),
        ]

    def _on_row(self, row: TokenRow) -> list[Action]:
        if row.finish in (FinishReason.CANCELLED, FinishReason.ERROR):
            broken = SpliceError(ErrorCode.INTERNAL_ERROR, "a worker ended the request without saying why")
            return self._on_failed(Failed(row.worker, row.attempt, broken, retryable=True))
        if row.worker == self.prefill:
            self._prefill_done = True
            if self.phase is Phase.PREFILL:
                self.phase = Phase.STREAMING
        else:
            self._decode_ready = True
        if not self.emitted:
            self.cached_tokens = min(max(self.cached_tokens, row.cached_tokens), len(self.prompt))
        if self.wanted.beams:
            return []
        if row.finish is FinishReason.NONE and row.seq == len(self.emitted) and not self._ahead and not self._finish:
            self.emitted.extend(row.tokens)  # what nearly every row is: the next tokens, in order
            return [Release(row.tokens, row.logprobs)] if row.tokens else []
        for index, token in enumerate(row.tokens):
            seq = row.seq + index
            if seq < len(self.emitted) or seq in self._ahead:
                self.dropped_tokens += 1
                continue
            self._ahead[seq] = (token, row.logprobs[index] if row.logprobs else None)
        if row.finish is not FinishReason.NONE:
            self._finish = (row.seq + len(row.tokens), row.finish, row.worker)
        return self._release()

    @property
    def scores_prompt(self) -> bool:
        """Log probabilities of the prompt are wanted and have not all come."""
        return self.wanted.prompt_logprobs and len(self.prompt_logprobs) < len(self.prompt) - 1

    def _on_scored(self, event: PromptScored) -> list[Action]:
        """Another attempt begins again at the first; what is known already is the same."""
        known = len(self.prompt_logprobs)
        if event.first - 1 > known or event.first - 1 + len(event.logprobs) >= len(self.prompt):
            broken = SpliceError(
                ErrorCode.INTERNAL_ERROR,
                f"log probabilities of prompt tokens {event.first} and on came after {known} of {len(self.prompt) - 1}",
            )
            return self._on_failed(Failed(event.worker, event.attempt, broken, retryable=True))
        self.prompt_logprobs.extend(event.logprobs[known - (event.first - 1) :])
        return []

    def _on_beams(self, event: BeamsFound) -> list[Action]:
        if not self.wanted.beams or not event.beams:
            broken = SpliceError(ErrorCode.INTERNAL_ERROR, "a worker sent beams that nobody asked for, or none at all")
            return self._on_failed(Failed(event.worker, event.attempt, broken, retryable=True))
        self.beams = event.beams
        self.cached_tokens = min(max(self.cached_tokens, event.cached_tokens), len(self.prompt))
        return [*self._dismiss_partner(event.worker), *self._finished(event.beams[0].finish)]

    def _finished(self, reason: FinishReason) -> list[Action]:
        if self.scores_prompt:
            missing = f"{len(self.prompt_logprobs)} of {len(self.prompt) - 1} log probabilities of the prompt came"
            return self._end(Fail(SpliceError(ErrorCode.INTERNAL_ERROR, missing)))
        return self._end(Finish(reason))

    def _release(self) -> list[Action]:
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        end = self._finish[0] if self._finish is not None else None
        while len(self.emitted) in self._ahead and len(self.emitted) != end:
            token, logprob = self._ahead.pop(len(self.emitted))
            self.emitted.append(token)
            tokens.append(token)
            if logprob is not None:
                logprobs.append(logprob)
        actions: list[Action] = [Release(tuple(tokens), tuple(logprobs))] if tokens else []
        if self._finish is not None and len(self.emitted) >= self._finish[0]:
            return [*actions, *self._dismiss_partner(self._finish[2]), *self._finished(self._finish[1])]
        return actions

    def _dismiss_partner(self, finisher: WorkerKey) -> list[Action]:
        """Ended on prefill, memory is still reserved at decode; ended on decode, prefill was done before."""
        if finisher == self.prefill or not self._prefill_done:
            return self._cancel_all("finished", spare=finisher)
        return []

    # What goes wrong --------------------------------------------------------------------------------------------------

    def _on_failed(self, event: Failed) -> list[Action]:
        if not event.retryable:
            return [*self._cancel_all("failed"), *self._end(Fail(self._blame.public(event.error)))]
        culprit = event.worker
        for worker in (self.prefill, self.decode):
            if worker is not None and worker[0] == event.blamed:
                culprit = worker
        return self._next_attempt(culprit, event.error)

    def _on_lost(self, worker: WorkerKey, reason: str) -> list[Action]:
        if worker == self.decode or (worker == self.prefill and not (self._prefill_done and self._decode_ready)):
            lost = SpliceError(ErrorCode.WORKER_LOST, f"worker {worker[0]} was lost: {reason}")
            return self._next_attempt(worker, lost)
        self._blame.lost(worker)
        verdict = self._blame.verdict(self.limits.max_attempts)
        return [*self._cancel_all("quarantined"), *self._end(Fail(verdict))] if verdict is not None else []

    def _next_attempt(self, culprit: WorkerKey, error: SpliceError) -> list[Action]:
        given_up, lost = self.attempt, culprit if error.code is ErrorCode.WORKER_LOST else None
        actions = self._cancel_all("attempt given up", spare=lost)
        self._blame.charge(culprit, error)
        verdict = self._blame.verdict(self.limits.max_attempts)
        if verdict is not None:
            return [*actions, *self._end(Fail(verdict))]
        self.attempt += 1
        self.phase = Phase.NEW
        self.decode = self.prefill = None
        self._ahead.clear()
        self._finish = None
        self._prefill_done = self._decode_ready = False
        self.handoff = HandoffFigures()
        return [*actions, Migrated(given_up, culprit, error), self._choose()]

    def _cancel_all(self, reason: str, spare: WorkerKey | None = None) -> list[Action]:
        return [
            SendCancel(worker, self.attempt, reason)
            for worker in (self.decode, self.prefill)
            if worker is not None and worker != spare
        ]

    def _end(self, terminal: Finish | Fail) -> list[Action]:
        self.phase = Phase.END
        self._ahead.clear()
        return [terminal]
