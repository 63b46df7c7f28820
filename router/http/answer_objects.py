"""The objects of one answer, in chunks or whole: what OpenAI's endpoints have in common around a choice."""

from __future__ import annotations

from typing import Any, Protocol

from router.choices import TextDelta, WholeChoice
from router.generation import Generation, Usage
from router.http.openai_format import usage_object

Fields = dict[str, Any]


class ChoiceFormat(Protocol):
    """How one endpoint writes a choice."""

    whole_object: str
    chunk_object: str

    def opening(self, index: int) -> Fields | None:
        """Sent before any token; None where nothing is."""

    def growth(self, delta: TextDelta) -> Fields: ...

    def whole(self, choice: WholeChoice, generation: Generation) -> Fields: ...

    def beside(self, generation: Generation) -> Fields:
        """Fields that stand beside the choices of a whole answer."""


class AnswerObjects:
    """Every object of one answer carries its id, its time in seconds since 1970 and the model's name."""

    def __init__(self, answer_id: str, created: int, model: str, choices: ChoiceFormat) -> None:
        self._whole_head = {"id": answer_id, "object": choices.whole_object, "created": created, "model": model}
        self._chunk_head = {**self._whole_head, "object": choices.chunk_object}
        self._choices = choices

    def opening(self, num_choices: int) -> list[Fields]:
        openings = [self._choices.opening(index) for index in range(num_choices)]
        return [{**self._chunk_head, "choices": [choice]} for choice in openings if choice is not None]

    def chunk(self, delta: TextDelta) -> Fields:
        return {**self._chunk_head, "choices": [self._choices.growth(delta)]}

    def usage_chunk(self, usage: Usage) -> Fields:
        """The last chunk: no choices, only figures."""
        return {**self._chunk_head, "choices": [], "usage": usage_object(usage)}

    def whole(self, choices: list[WholeChoice], generation: Generation) -> Fields:
        return {
            **self._whole_head,
            "choices": [self._choices.whole(choice, generation) for choice in choices],
            "usage": usage_object(generation.usage),
            **self._choices.beside(generation),
        }
