"""What every endpoint that generates does with a request; each says how it reads one and how it writes choices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from starlette.types import Receive, Scope, Send

from router.fields import FieldTable
from router.http.answer import Answer
from router.http.answer_objects import AnswerObjects, ChoiceFormat
from router.http.exchange import Exchange
from router.requested import Requested
from router.service import InferenceService
from router.text.tokenizer import ModelText
from router.validate import read_model, read_stream


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, checked and in tokens."""

    prompts: Sequence[tuple[int, ...]]
    requested: Requested
    where: str
    """The field its prompts came from."""
    choices: ChoiceFormat


class Endpoint(ABC):
    """ASGI app."""

    fields: ClassVar[FieldTable]
    id_prefix: ClassVar[str]

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, exchange = self._service, Exchange(scope, receive, send)
        body = await exchange.read_json(service.settings.max_body_bytes, service.settings.body_timeout_s)
        self.fields.check(body)
        text = service.model_text(read_model(body))
        stream, include_usage = read_stream(body)
        asked = await self.read(body, text, stream=stream)
        generation = service.generate(text, asked.prompts, asked.requested, where=asked.where)
        answer_id = f"{self.id_prefix}-{service.randomness.draw_id():016x}"
        objects = AnswerObjects(answer_id, service.created(), text.card.name, asked.choices)
        await Answer(exchange, generation, objects).send(stream=stream, include_usage=include_usage)

    @abstractmethod
    async def read(self, body: Mapping[str, Any], text: ModelText, *, stream: bool) -> Asked:
        """Raises SpliceError naming the first field that cannot be."""
