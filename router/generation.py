"""From tokens to text: what one front-door request asked for, as deltas of its choices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from router.dispatch import Run
from router.receipt import Receipt
from router.text.stop import StopMatcher
from router.text.tokenizer import ModelText
from router.validate import Requested
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one choice grew by. `text` may lag behind `tokens` while a character or a stop string is incomplete."""

    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason = FinishReason.NONE


class ChoiceStream:
    """One run with its detokenizer and stop matcher; tokens go through one by one, so batching never shows."""

    def __init__(self, choice: int, run: Run, text: ModelText, requested: Requested) -> None:
        self.choice = choice
        self.run = run
        self.num_tokens = 0
        """Tokens of the answer; those a worker drew past a stop string do not count."""
        self.finish = FinishReason.NONE
        self._min_tokens = requested.base.min_tokens
        self._detokenizer = text.detokenizer(skip_special_tokens=requested.skip_special_tokens)
        self._stops = StopMatcher(requested.stop, include_stop=requested.include_stop)

    def poll(self) -> TextDelta | None:
        """What came since the last call; raises the error that ended the run."""
        if self.finish is not FinishReason.NONE:
            return None
        batch = self.run.poll()
        if batch is None:
            return None
        if batch.error is not None:
            raise batch.error
        pieces: list[str] = []
        taken = 0
        for token in batch.tokens:
            taken += 1
            text = self._detokenizer.push(token)
            # Like stop tokens, stop strings count only beyond the first `min_tokens` tokens.
            pieces.append(text if self.num_tokens + taken <= self._min_tokens else self._stops.feed(text))
            if self._stops.matched is not None:
                break
        if self._stops.matched is not None:
            self.finish = FinishReason.STOP
            self.run.stop()
        elif batch.finish is not FinishReason.NONE:
            self.finish = batch.finish
            pieces.append(self._stops.feed(self._detokenizer.flush()))
            pieces.append(self._stops.flush())
        self.num_tokens += taken
        return TextDelta(self.choice, "".join(pieces), batch.tokens[:taken], batch.logprobs[:taken], self.finish)


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact, whatever happened on the way."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Generation:
    """All choices of one front-door request. Leaving `deltas` by any way cancels what still runs."""

    def __init__(
        self, streams: Sequence[ChoiceStream], prompts: Sequence[tuple[int, ...]], wake: asyncio.Event
    ) -> None:
        self.streams = tuple(streams)
        self._prompts = tuple(prompts)
        self._wake = wake
        self._abandoned = False

    async def deltas(self) -> AsyncIterator[list[TextDelta]]:
        """Deltas that came together, until every choice has finished. Raises the first error of any choice."""
        try:
            while any(stream.finish is FinishReason.NONE for stream in self.streams):
                # Bounded by each run's deadline, which ends the run and wakes this wait.
                await self._wake.wait()
                self._wake.clear()
                if self._abandoned:
                    raise SpliceError(ErrorCode.CANCELLED, "the client closed the request")
                ready = [delta for stream in self.streams if (delta := stream.poll()) is not None]
                if ready:
                    yield ready
        finally:
            self.cancel()

    def abandon(self) -> None:
        """The client left: ends `deltas`, from whichever task this is called."""
        self._abandoned = True
        self.cancel()
        self._wake.set()

    def cancel(self) -> None:
        for stream in self.streams:
            stream.run.cancel()

    @property
    def usage(self) -> Usage:
        """Each prompt counts once, however many choices it got."""
        choices_per_prompt = max(len(self.streams) // max(len(self._prompts), 1), 1)
        firsts = self.streams[::choices_per_prompt]
        return Usage(
            prompt_tokens=sum(len(prompt) for prompt in self._prompts),
            completion_tokens=sum(stream.num_tokens for stream in self.streams),
            cached_tokens=sum(stream.run.lifecycle.cached_tokens for stream in firsts),
        )

    @property
    def receipt(self) -> Receipt:
        """Of the first choice."""
        return self.streams[0].run.receipt()
