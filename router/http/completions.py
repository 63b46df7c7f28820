"""POST /v1/completions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.types import Receive, Scope, Send

from router.fields import COMPLETION_FIELDS
from router.generation import TextDelta, Usage
from router.http.answer import Answer, WholeChoice
from router.http.exchange import Exchange
from router.http.openai_format import Logprobs, completion_logprobs, finish_name, usage_object
from router.service import InferenceService
from router.text.vocabulary import Vocabulary
from router.validate import (
    MAX_SEQUENCES,
    invalid,
    read_completion_logprobs,
    read_model,
    read_prompts,
    read_sampling,
    read_stream,
)

DEFAULT_MAX_TOKENS = 16
"""What the OpenAI API documents for this endpoint."""


class CompletionsEndpoint:
    """ASGI app."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, exchange = self._service, Exchange(scope, receive, send)
        settings = service.settings
        body = await exchange.read_json(settings.max_body_bytes, settings.body_timeout_s)
        COMPLETION_FIELDS.check(body)
        text = service.model_text(read_model(body))
        given = read_prompts(body.get("prompt"), text.card.vocab_size)
        stream, include_usage = read_stream(body)
        requested = read_sampling(body, text.card, logprobs=read_completion_logprobs(body))
        if requested.max_tokens is None:
            requested = replace(requested, max_tokens=max(DEFAULT_MAX_TOKENS, requested.base.min_tokens))
        if len(given) * requested.n > MAX_SEQUENCES:
            raise invalid("n", f"{len(given)} prompts times n = {requested.n}; at most {MAX_SEQUENCES} together")
        prompts = [await text.encode_prompt(each) if isinstance(each, str) else each for each in given]
        generation = service.generate(text, prompts, requested, where="prompt")
        completion = CompletionFormat(
            f"cmpl-{service.randomness.draw_id():016x}",
            service.created(),
            text.card.name,
            text.vocabulary,
            with_logprobs=requested.logprobs is not None,
        )
        await Answer(exchange, generation, completion).send(stream=stream, include_usage=include_usage)


class CompletionFormat:
    """`text_completion` objects, streamed or whole."""

    def __init__(
        self, answer_id: str, created: int, model: str, vocabulary: Vocabulary, *, with_logprobs: bool
    ) -> None:
        self._head = {"id": answer_id, "object": "text_completion", "created": created, "model": model}
        self._vocabulary = vocabulary
        self._with_logprobs = with_logprobs
        self._offsets: dict[int, int] = {}

    def opening(self, num_choices: int) -> list[dict[str, Any]]:
        del num_choices
        return []

    def chunk(self, delta: TextDelta, logprobs: Logprobs) -> dict[str, Any]:
        return {**self._head, "choices": [self._choice(delta.choice, delta.text, logprobs, finish_name(delta.finish))]}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": usage_object(usage)}

    def whole(self, choices: list[WholeChoice], usage: Usage) -> dict[str, Any]:
        listed = [self._choice(each.index, each.text, each.logprobs, finish_name(each.finish)) for each in choices]
        return {**self._head, "choices": listed, "usage": usage_object(usage)}

    def _choice(self, index: int, text: str, logprobs: Logprobs, finish: str | None) -> dict[str, Any]:
        figures = None
        if self._with_logprobs:
            offset = self._offsets.get(index, 0)
            figures = completion_logprobs(logprobs, self._vocabulary, offset)
            self._offsets[index] = offset + sum(len(token) for token in figures["tokens"])
        return {"index": index, "text": text, "logprobs": figures, "finish_reason": finish}
