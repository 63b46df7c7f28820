"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.choices import TextDelta, WholeChoice
from router.fields import CHAT_FIELDS
from router.generation import Generation
from router.http.answer_objects import Fields
from router.http.endpoint import Asked, Endpoint
from router.http.openai_format import chat_logprobs, finish_name, pair_logprobs, prompt_logprobs_list, score_field
from router.requested import read_prompt_logprobs, read_sampling
from router.text.tokenizer import ModelText
from router.validate import read_chat_logprobs, read_messages
from wire.text.vocabulary import Vocabulary


class ChatEndpoint(Endpoint):
    fields = CHAT_FIELDS
    id_prefix = "chatcmpl"

    async def read(self, body: Mapping[str, Any], text: ModelText, *, stream: bool) -> Asked:
        """See `Endpoint.read`."""
        messages = read_messages(body.get("messages"))
        requested = read_sampling(
            body,
            text.card,
            logprobs=read_chat_logprobs(body),
            prompt_logprobs=read_prompt_logprobs(body),
            stream=stream,
        )
        prompt = await text.encode_chat(messages)
        choices = ChatChoices(text.vocabulary, with_logprobs=requested.logprobs is not None)
        return Asked([prompt], requested, "messages", choices)


class ChatChoices:
    """Choices of `chat.completion` and `chat.completion.chunk` objects."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, vocabulary: Vocabulary, *, with_logprobs: bool) -> None:
        self._vocabulary = vocabulary
        self._with_logprobs = with_logprobs

    def opening(self, index: int) -> Fields:
        return {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }

    def growth(self, delta: TextDelta) -> Fields:
        return {
            "index": delta.choice,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": self._logprobs(delta) if delta.logprobs else None,
            "finish_reason": finish_name(delta.finish),
            **score_field(delta.score),
        }

    def whole(self, choice: WholeChoice, generation: Generation) -> Fields:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice),
            "finish_reason": finish_name(choice.finish),
            **score_field(choice.score),
        }

    def beside(self, generation: Generation) -> Fields:
        if generation.requested.base.prompt_logprobs is None:
            return {}
        figures = generation.prompt_logprobs(0)
        return {"prompt_logprobs": prompt_logprobs_list(generation.prompts[0], figures, self._vocabulary)}

    def _logprobs(self, answer: TextDelta | WholeChoice) -> Fields | None:
        if not self._with_logprobs:
            return None
        return chat_logprobs(pair_logprobs(answer.tokens, answer.logprobs), self._vocabulary)
