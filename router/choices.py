"""One choice of an answer: as it grows, and when it is complete."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from router.requested import Requested
from router.run import Run
from router.text.tokenizer import ModelText
from wire.sampling import Beam, FinishReason, TokenLogprobs
from wire.text.answer_text import AnswerText


class TextDelta(msgspec.Struct, frozen=True):
    """What one choice grew by. `text` may lag behind `tokens` while a character or a stop string is incomplete."""

    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish: FinishReason = FinishReason.NONE
    score: float | None = None
    """Of a beam."""


@dataclass(slots=True)
class WholeChoice:
    """One choice, complete."""

    index: int
    prompt: int = 0
    """Which prompt of the request it answers."""
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """One per token, if asked for."""
    finish: FinishReason = FinishReason.NONE
    score: float | None = None
    """Of a beam."""

    def grow(self, delta: TextDelta) -> None:
        self.text += delta.text
        self.tokens.extend(delta.tokens)
        self.logprobs.extend(delta.logprobs)
        self.finish = delta.finish

    def delta(self) -> TextDelta:
        """All of it at once."""
        return TextDelta(self.index, self.text, tuple(self.tokens), tuple(self.logprobs), self.finish, self.score)


class ChoiceStream:
    """One run and the text of its answer."""

    def __init__(self, choice: int, prompt: int, run: Run, text: ModelText, requested: Requested) -> None:
        self.choice = choice
        self.prompt = prompt
        self.run = run
        self.num_tokens = 0
        """Tokens of the answer; those a worker drew past a stop string do not count."""
        self.finish = FinishReason.NONE
        self._model_text = text
        self._requested = requested
        self._logprob_sum = 0.0
        self._text = self._new_text()

    def poll(self) -> TextDelta | None:
        """What came since the last call; raises the error that ended the run."""
        if self.finish is not FinishReason.NONE:
            return None
        batch = self.run.poll()
        if batch is None:
            return None
        if batch.error is not None:
            raise batch.error
        if self._requested.max_tokens == 0 or self._requested.base.beam is not None:
            self.finish = batch.finish
            self.num_tokens = sum(len(beam.tokens) for beam in self.run.lifecycle.beams)
            return TextDelta(self.choice, "", (), (), self.finish)
        text = self._text.read(batch.tokens)
        if self._text.stopped:
            self.finish = FinishReason.STOP
            self.run.stop()
        elif batch.finish is not FinishReason.NONE:
            self.finish = batch.finish
            text += self._text.finish()
        taken = self._text.num_tokens - self.num_tokens
        self.num_tokens += taken
        logprobs = batch.logprobs[:taken]
        self._logprob_sum += sum(one.logprob for one in logprobs)
        shown = logprobs if self._requested.logprobs is not None else ()
        return TextDelta(self.choice, text, batch.tokens[:taken], shown, self.finish)

    @property
    def mean_logprob(self) -> float:
        """Of the tokens so far; they must have been asked for with log probabilities."""
        return self._logprob_sum / max(self.num_tokens, 1)

    def whole_beams(self) -> list[WholeChoice]:
        """The answers of a finished beam search, best first."""
        return [self._whole_beam(beam) for beam in self.run.lifecycle.beams]

    def _whole_beam(self, beam: Beam) -> WholeChoice:
        answer = self._new_text()
        text = answer.read(beam.tokens) + answer.finish()
        shown = beam.logprobs if self._requested.logprobs is not None else ()
        return WholeChoice(self.choice, self.prompt, text, list(beam.tokens), list(shown), beam.finish, beam.score)

    def _new_text(self) -> AnswerText:
        requested = self._requested
        return AnswerText(
            self._model_text.vocabulary,
            stop=requested.stop,
            include_stop=requested.include_stop,
            skip_special_tokens=requested.skip_special_tokens,
            min_tokens=requested.base.min_tokens,
        )
