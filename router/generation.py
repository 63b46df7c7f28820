"""What one front-door request asked for: all choices of all its prompts, streamed or whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from router.choices import ChoiceStream, TextDelta, WholeChoice
from router.receipt import Receipt
from router.requested import Requested
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact, whatever happened on the way."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Generation:
    """All choices of one front-door request. Leaving `deltas` by any way cancels what still runs."""

    def __init__(
        self,
        streams: Sequence[ChoiceStream],
        prompts: Sequence[tuple[int, ...]],
        requested: Requested,
        wake: asyncio.Event,
    ) -> None:
        self.streams = tuple(streams)
        self.prompts = tuple(prompts)
        self.requested = requested
        self._wake = wake
        self._abandoned = False

    @property
    def num_choices(self) -> int:
        """Choices returned, of all prompts."""
        return len(self.prompts) * self.requested.n

    def deltas(self) -> AsyncIterator[list[TextDelta]]:
        """Deltas of the choices returned that came together, until each has finished. Raises the first error of any.

        Where those to be returned are known only when all are complete, each is one delta, and all come at the end.
        """
        return self._at_the_end() if self._is_whole else self._growth()

    async def whole(self) -> list[WholeChoice]:
        """Waits for every choice; returns `n` of each prompt, numbered through. Of more than `n` the best are taken."""
        choices = [WholeChoice(stream.choice, stream.prompt) for stream in self.streams]
        async for deltas in self._growth():
            for delta in deltas:
                choices[delta.choice].grow(delta)
        if self.requested.base.beam is not None:
            choices = [beam for stream in self.streams for beam in stream.whole_beams()]
        elif self.requested.ranks:
            choices = self._best(choices)
        return [replace(choice, index=index) for index, choice in enumerate(choices)]

    @property
    def _is_whole(self) -> bool:
        return self.requested.ranks or self.requested.base.beam is not None

    async def _at_the_end(self) -> AsyncIterator[list[TextDelta]]:
        yield [choice.delta() for choice in await self.whole()]

    async def _growth(self) -> AsyncIterator[list[TextDelta]]:
        """Of every choice generated."""
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

    def prompt_logprobs(self, prompt: int) -> tuple[TokenLogprobs, ...]:
        """Of every token of that prompt but the first, if asked for; complete with the first token of the answer."""
        return tuple(self._first_of(prompt).run.lifecycle.prompt_logprobs)

    @property
    def usage(self) -> Usage:
        """Each prompt counts once, however many choices it got; every choice counts, returned or not."""
        firsts = [self._first_of(prompt) for prompt in range(len(self.prompts))]
        return Usage(
            prompt_tokens=sum(len(prompt) for prompt in self.prompts),
            completion_tokens=sum(stream.num_tokens for stream in self.streams),
            cached_tokens=sum(stream.run.lifecycle.cached_tokens for stream in firsts),
        )

    @property
    def receipt(self) -> Receipt:
        """Of the first choice."""
        return self.streams[0].run.receipt()

    def _first_of(self, prompt: int) -> ChoiceStream:
        return next(stream for stream in self.streams if stream.prompt == prompt)

    def _best(self, choices: Sequence[WholeChoice]) -> list[WholeChoice]:
        """Of each prompt the `n` with the highest mean log probability of a token, ties in the order of choices."""
        best: list[WholeChoice] = []
        for prompt in range(len(self.prompts)):
            ranked = sorted(
                (stream for stream in self.streams if stream.prompt == prompt),
                key=lambda stream: (-stream.mean_logprob, stream.choice),
            )
            best.extend(choices[stream.choice] for stream in ranked[: self.requested.n])
        return best
