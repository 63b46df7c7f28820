"""What answers read as, for the requests that end by it here: beam searches with stop strings."""

from __future__ import annotations

from functools import cached_property

from wire.model_card import ModelCard
from wire.sampling import SamplingParams
from wire.text.answer_text import AnswerText
from wire.text.vocabulary import Vocabulary, load_tokenizer


class AnswerTexts:
    """The tokenizer is loaded for the first such search: others need none here, and it takes tens of megabytes."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card

    def of_search(self, sampling: SamplingParams) -> AnswerText | None:
        """The text of no tokens; None where nothing ends by its text. Raises SpliceError for an unusable tokenizer."""
        beam = sampling.beam
        if beam is None or not beam.stop:
            return None
        return AnswerText(
            self._vocabulary,
            stop=beam.stop,
            skip_special_tokens=beam.skip_special_tokens,
            min_tokens=sampling.min_tokens,
        )

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(load_tokenizer(self._card), self._card.tokenizer_json)
