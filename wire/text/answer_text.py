"""The text of one answer, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from wire.text.detokenizer import make_detokenizer
from wire.text.stop import StopMatcher
from wire.text.vocabulary import Vocabulary


class AnswerText:
    """Tokens go through one by one, so how they came together never shows.

    Like stop tokens, stop strings count only beyond the first `min_tokens` tokens: every character of one must lie
    there, and a character lies where its last byte does.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self.num_tokens = 0
        """Tokens read; the one that completes a stop string is the last."""
        self._min_tokens = min_tokens
        self._detokenizer = make_detokenizer(vocabulary, skip_special_tokens=skip_special_tokens)
        self._stops = StopMatcher(stop, include_stop=include_stop)

    @property
    def stopped(self) -> bool:
        """A stop string is complete: the answer ends here."""
        return self._stops.matched is not None

    def read(self, tokens: Sequence[int]) -> str:
        """The text that became certain. Tokens behind a stop string are not read."""
        pieces: list[str] = []
        for token in tokens:
            if self._stops.matched is not None:
                break
            self.num_tokens += 1
            text = self._detokenizer.push(token)
            pieces.append(self._stops.feed(text) if self.num_tokens > self._min_tokens else text)
        return "".join(pieces)

    def finish(self) -> str:
        """No token follows: what was withheld, as half a character or the beginning of a stop string."""
        return self._stops.feed(self._detokenizer.flush()) + self._stops.flush()

    def after(self, token: int) -> AnswerText:
        """This answer and one token more; itself it stays as it is."""
        grown = copy(self)
        grown._detokenizer, grown._stops = self._detokenizer.copy(), copy(self._stops)
        grown.read((token,))
        return grown
