"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.types import Receive, Scope, Send

from router.choices import TextDelta, WholeChoice
from router.fields import COMPLETION_FIELDS
from router.generation import Generation, Usage
from router.http.answer import Answer
from router.http.exchange import Exchange
from router.http.openai_format import (
    Logprobs,
    completion_logprobs,
    finish_name,
    pair_logprobs,
    prompt_logprobs_list,
    score_field,
    usage_object,
)
from router.requested import Requested, read_prompt_logprobs, read_sampling
from router.service import InferenceService
from router.text.tokenizer import ModelText
from router.validate import (
    MAX_SEQUENCES,
    flag,
    invalid,
    read_completion_logprobs,
    read_model,
    read_prompts,
    read_stream,
)
from wire.sampling import TokenLogprobs
from wire.text.vocabulary import Vocabulary

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
        echo = flag(body, "echo")
        requested = _requested(body, text, echo=echo, stream=stream)
        if len(given) * requested.best_of > MAX_SEQUENCES:
            count = f"{len(given)} prompts times {requested.best_of} choices"
            raise invalid("n", f"{count}; at most {MAX_SEQUENCES} together")
        prompts = [await text.encode_prompt(each) if isinstance(each, str) else each for each in given]
        generation = service.generate(text, prompts, requested, where="prompt")
        echoed = [each if isinstance(each, str) else text.vocabulary.decode(each) for each in given] if echo else None
        completion = CompletionFormat(
            f"cmpl-{service.randomness.draw_id():016x}",
            service.created(),
            text.card.name,
            text.vocabulary,
            requested,
            echoed,
        )
        await Answer(exchange, generation, completion).send(stream=stream, include_usage=include_usage)


def _requested(body: Mapping[str, Any], text: ModelText, *, echo: bool, stream: bool) -> Requested:
    logprobs, prompt_logprobs = read_completion_logprobs(body), read_prompt_logprobs(body)
    if echo and logprobs is not None:
        if stream:
            raise invalid("echo", "with logprobs is not streamed; leave out one of echo, logprobs and stream")
        prompt_logprobs = max(logprobs, prompt_logprobs or 0)
    requested = read_sampling(
        body,
        text.card,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        stream=stream,
        may_score_only=echo or prompt_logprobs is not None,
    )
    if requested.max_tokens is None:
        requested = replace(requested, max_tokens=max(DEFAULT_MAX_TOKENS, requested.base.min_tokens))
    return requested


class CompletionFormat:
    """`text_completion` objects, streamed or whole."""

    def __init__(
        self,
        answer_id: str,
        created: int,
        model: str,
        vocabulary: Vocabulary,
        requested: Requested,
        echoed: Sequence[str] | None,
    ) -> None:
        """`echoed`: the prompts' texts, which their answers begin with."""
        self._head = {"id": answer_id, "object": "text_completion", "created": created, "model": model}
        self._vocabulary = vocabulary
        self._requested = requested
        self._echoed = echoed
        self._offsets: dict[int, int] = {}

    def opening(self, num_choices: int) -> list[dict[str, Any]]:
        if self._echoed is None:
            return []
        each = self._requested.n
        echoed = [text for text in self._echoed for _ in range(each)]
        return [
            {**self._head, "choices": [self._choice(index, text, (), None)]}
            for index, text in zip(range(num_choices), echoed, strict=True)
        ]

    def chunk(self, delta: TextDelta, logprobs: Logprobs) -> dict[str, Any]:
        choice = self._choice(delta.choice, delta.text, logprobs, finish_name(delta.finish))
        return {**self._head, "choices": [{**choice, **score_field(delta.score)}]}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": usage_object(usage)}

    def whole(self, choices: list[WholeChoice], generation: Generation) -> dict[str, Any]:
        listed = [self._whole_choice(choice, generation) for choice in choices]
        return {**self._head, "choices": listed, "usage": usage_object(generation.usage)}

    def _whole_choice(self, choice: WholeChoice, generation: Generation) -> dict[str, Any]:
        text = choice.text
        entries: list[tuple[int, TokenLogprobs | None]] = list(pair_logprobs(choice.tokens, choice.logprobs))
        prompt = generation.prompts[choice.prompt]
        scored = generation.prompt_logprobs(choice.prompt)
        if self._echoed is not None:
            text = self._echoed[choice.prompt] + text
            if self._requested.logprobs is not None:
                entries = [*self._prompt_entries(prompt, scored), *entries]
        answer = self._choice(choice.index, text, entries, finish_name(choice.finish))
        answer |= score_field(choice.score)
        if self._requested.base.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs_list(prompt, scored, self._vocabulary)
        return answer

    def _prompt_entries(
        self, prompt: Sequence[int], scored: Sequence[TokenLogprobs]
    ) -> list[tuple[int, TokenLogprobs | None]]:
        """With as many alternatives as were asked for beside the answer's tokens."""
        num_top = self._requested.logprobs or 0
        cut = [TokenLogprobs(one.logprob, one.top_ids[:num_top], one.top_logprobs[:num_top]) for one in scored]
        return [(prompt[0], None), *zip(prompt[1:], cut, strict=True)]

    def _choice(
        self, index: int, text: str, logprobs: Sequence[tuple[int, TokenLogprobs | None]], finish: str | None
    ) -> dict[str, Any]:
        figures = None
        if self._requested.logprobs is not None:
            offset = self._offsets.get(index, 0)
            figures = completion_logprobs(logprobs, self._vocabulary, offset)
            self._offsets[index] = offset + sum(len(token) for token in figures["tokens"])
        return {"index": index, "text": text, "logprobs": figures, "finish_reason": finish}
