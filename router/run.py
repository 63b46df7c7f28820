"""One request under way, between the dispatcher that feeds it and whoever asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from router.events import ClientGone, Event, Fail, Finish, Release, StopFound, WorkerKey
from router.lifecycle import RequestLifecycle
from router.receipt import Receipt, Timings
from wire.errors import SpliceError
from wire.model_card import ModelCard
from wire.sampling import FinishReason, SamplingParams, TokenLogprobs


class Batch(msgspec.Struct, frozen=True):
    """Tokens that came since the last look. After a `finish` or an `error` nothing more comes."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason = FinishReason.NONE
    error: SpliceError | None = None


class Run:
    """One request under way, seen by the one who asked for it: `poll` after `wake` was set."""

    def __init__(
        self,
        feed: Callable[[Run, Event], None],
        request: int,
        card: ModelCard,
        *,
        lifecycle: RequestLifecycle,
        sampling: SamplingParams,
        wake: asyncio.Event,
        now_s: float,
    ) -> None:
        """`feed` takes what its owner says of it to whoever carries out what follows."""
        self.request = request
        self.card = card
        self.model = card.name
        self.lifecycle = lifecycle
        self.sampling = sampling
        self.timings = Timings(now_s)
        self.compat_id: str | None = None
        """Of the decode worker chosen last."""
        self.timer: asyncio.TimerHandle | None = None
        self.submitted_to: dict[WorkerKey, int] = {}
        """Prompt tokens still counted on a worker on behalf of this request."""
        self.waiting: list[Run] = []
        """Other choices of the same prompt, which start when its KV can be shared."""
        self.leader: Run | None = None
        """The choice this one waits for, and whose workers it prefers."""
        self._feed = feed
        self._wake = wake
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._terminal: Finish | Fail | None = None

    def deliver(self, action: Release | Finish | Fail) -> None:
        if isinstance(action, Release):
            self._tokens.extend(action.tokens)
            if self.sampling.logprobs is not None:  # a frame carries blanks for whoever shares it with one who asked
                self._logprobs.extend(action.logprobs)
        else:
            self._terminal = action
        self._wake.set()

    def poll(self) -> Batch | None:
        """What came since the last call; None when nothing did."""
        if not self._tokens and self._terminal is None:
            return None
        finish = self._terminal.reason if isinstance(self._terminal, Finish) else FinishReason.NONE
        error = self._terminal.error if isinstance(self._terminal, Fail) else None
        batch = Batch(tuple(self._tokens), tuple(self._logprobs), finish, error)
        self._tokens.clear()
        self._logprobs.clear()
        if batch.tokens and error is not None:
            self._wake.set()  # the tokens go out first; the error is for the next look
            return Batch(batch.tokens, batch.logprobs)
        return batch

    def stop(self) -> None:
        """The text is complete: a stop string was found."""
        self._feed(self, StopFound())

    def cancel(self) -> None:
        """Nobody wants the answer any more. Does nothing once the request has ended."""
        self._feed(self, ClientGone())

    def receipt(self) -> Receipt:
        return Receipt.of(self.lifecycle, self.timings, self.sampling.seed)
