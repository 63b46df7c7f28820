"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from router.choices import TextDelta, WholeChoice
from router.fields import CHAT_FIELDS
from router.generation import Generation, Usage
from router.http.answer import Answer
from router.http.exchange import Exchange
from router.http.openai_format import (
    NO_SCORE,
    Logprobs,
    chat_logprobs,
    finish_name,
    pair_logprobs,
    prompt_logprobs_list,
    score_field,
    usage_object,
)
from router.requested import read_prompt_logprobs, read_sampling
from router.service import InferenceService
from router.validate import read_chat_logprobs, read_messages, read_model, read_stream
from wire.text.vocabulary import Vocabulary


class ChatEndpoint:
    """ASGI app."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, exchange = self._service, Exchange(scope, receive, send)
        settings = service.settings
        body = await exchange.read_json(settings.max_body_bytes, settings.body_timeout_s)
        CHAT_FIELDS.check(body)
        text = service.model_text(read_model(body))
        messages = read_messages(body.get("messages"))
        stream, include_usage = read_stream(body)
        requested = read_sampling(
            body,
            text.card,
            logprobs=read_chat_logprobs(body),
            prompt_logprobs=read_prompt_logprobs(body),
            stream=stream,
        )
        prompt = await text.encode_chat(messages)
        generation = service.generate(text, [prompt], requested, where="messages")
        chat = ChatFormat(
            f"chatcmpl-{service.randomness.draw_id():016x}",
            service.created(),
            text.card.name,
            text.vocabulary,
            with_logprobs=requested.logprobs is not None,
        )
        await Answer(exchange, generation, chat).send(stream=stream, include_usage=include_usage)


class ChatFormat:
    """`chat.completion` and `chat.completion.chunk` objects."""

    def __init__(
        self, answer_id: str, created: int, model: str, vocabulary: Vocabulary, *, with_logprobs: bool
    ) -> None:
        self._head = {"id": answer_id, "created": created, "model": model}
        self._vocabulary = vocabulary
        self._with_logprobs = with_logprobs

    def opening(self, num_choices: int) -> list[dict[str, Any]]:
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(num_choices)]

    def chunk(self, delta: TextDelta, logprobs: Logprobs) -> dict[str, Any]:
        content = {"content": delta.text} if delta.text else {}
        return self._chunk(delta.choice, content, logprobs, finish_name(delta.finish), score_field(delta.score))

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage_object(usage)}

    def whole(self, choices: list[WholeChoice], generation: Generation) -> dict[str, Any]:
        answer = {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice.index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": self._logprobs(pair_logprobs(choice.tokens, choice.logprobs)),
                    "finish_reason": finish_name(choice.finish),
                    **score_field(choice.score),
                }
                for choice in choices
            ],
            "usage": usage_object(generation.usage),
        }
        if generation.requested.base.prompt_logprobs is not None:
            figures = generation.prompt_logprobs(0)
            answer["prompt_logprobs"] = prompt_logprobs_list(generation.prompts[0], figures, self._vocabulary)
        return answer

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: Logprobs = (),
        finish: str | None = None,
        score: Mapping[str, float] = NO_SCORE,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(logprobs) if logprobs else None,
            "finish_reason": finish,
            **score,
        }
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, entries: Logprobs) -> dict[str, Any] | None:
        return chat_logprobs(entries, self._vocabulary) if self._with_logprobs else None
