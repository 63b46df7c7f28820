"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from router.choices import TextDelta, WholeChoice
from router.fields import COMPLETION_FIELDS
from router.generation import Generation
from router.http.answer_objects import Fields
from router.http.endpoint import Asked, Endpoint
from router.http.openai_format import (
    completion_logprobs,
    finish_name,
    pair_logprobs,
    prompt_logprobs_list,
    score_field,
)
from router.requested import Requested, read_prompt_logprobs, read_sampling
from router.text.tokenizer import ModelText
from router.validate import MAX_SEQUENCES, flag, invalid, read_completion_logprobs, read_prompts
from wire.sampling import FinishReason, TokenLogprobs
from wire.text.vocabulary import Vocabulary

DEFAULT_MAX_TOKENS = 16
"""What the OpenAI API documents for this endpoint."""


class CompletionsEndpoint(Endpoint):
    fields = COMPLETION_FIELDS
    id_prefix = "cmpl"

    async def read(self, body: Mapping[str, Any], text: ModelText, *, stream: bool) -> Asked:
        """See `Endpoint.read`."""
        given = read_prompts(body.get("prompt"), text.card.vocab_size)
        echo = flag(body, "echo")
        requested = _requested(body, text, echo=echo, stream=stream)
        if len(given) * requested.best_of > MAX_SEQUENCES:
            count = f"{len(given)} prompts times {requested.best_of} choices"
            raise invalid("n", f"{count}; at most {MAX_SEQUENCES} together")
        prompts = [await text.encode_prompt(each) if isinstance(each, str) else each for each in given]
        echoed = [each if isinstance(each, str) else text.vocabulary.decode(each) for each in given] if echo else None
        return Asked(prompts, requested, "prompt", CompletionChoices(text.vocabulary, requested, echoed))


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


class CompletionChoices:
    """Choices of `text_completion` objects, streamed or whole."""

    whole_object = chunk_object = "text_completion"

    def __init__(self, vocabulary: Vocabulary, requested: Requested, echoed: Sequence[str] | None) -> None:
        """`echoed`: the prompts' texts, which their answers begin with."""
        self._vocabulary = vocabulary
        self._requested = requested
        self._echoed = echoed
        self._offsets: dict[int, int] = {}

    def opening(self, index: int) -> Fields | None:
        if self._echoed is None:
            return None
        return self._choice(index, self._echoed[index // self._requested.n], (), FinishReason.NONE)

    def growth(self, delta: TextDelta) -> Fields:
        entries = pair_logprobs(delta.tokens, delta.logprobs)
        return self._choice(delta.choice, delta.text, entries, delta.finish, delta.score)

    def whole(self, choice: WholeChoice, generation: Generation) -> Fields:
        text = choice.text
        entries: list[tuple[int, TokenLogprobs | None]] = list(pair_logprobs(choice.tokens, choice.logprobs))
        prompt = generation.prompts[choice.prompt]
        scored = generation.prompt_logprobs(choice.prompt)
        if self._echoed is not None:
            text = self._echoed[choice.prompt] + text
            if self._requested.logprobs is not None:
                entries = [*self._prompt_entries(prompt, scored), *entries]
        answer = self._choice(choice.index, text, entries, choice.finish, choice.score)
        if self._requested.base.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs_list(prompt, scored, self._vocabulary)
        return answer

    def beside(self, generation: Generation) -> Fields:
        return {}

    def _prompt_entries(
        self, prompt: Sequence[int], scored: Sequence[TokenLogprobs]
    ) -> list[tuple[int, TokenLogprobs | None]]:
        """With as many alternatives as were asked for beside the answer's tokens."""
        num_top = self._requested.logprobs or 0
        cut = [TokenLogprobs(one.logprob, one.top_ids[:num_top], one.top_logprobs[:num_top]) for one in scored]
        return [(prompt[0], None), *zip(prompt[1:], cut, strict=True)]

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: Sequence[tuple[int, TokenLogprobs | None]],
        finish: FinishReason,
        score: float | None = None,
    ) -> Fields:
        figures = None
        if self._requested.logprobs is not None:
            offset = self._offsets.get(index, 0)
            figures = completion_logprobs(logprobs, self._vocabulary, offset)
            self._offsets[index] = offset + sum(len(token) for token in figures["tokens"])
        return {
            "index": index,
            "text": text,
            "logprobs": figures,
            "finish_reason": finish_name(finish),
            **score_field(score),
        }
