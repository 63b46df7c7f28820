"""Deltas, answers and logprobs in the shapes OpenAI clients parse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from router.generation import Generation, Usage
from wire.sampling import FinishReason, TokenLogprobs
from wire.text.vocabulary import Vocabulary

Logprobs = Sequence[tuple[int, TokenLogprobs]]
"""(chosen token, its figures), in order."""


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def finish_name(finish: FinishReason) -> str | None:
    return None if finish is FinishReason.NONE else finish.openai_name


NO_SCORE: Mapping[str, float] = {}


def score_field(score: float | None) -> Mapping[str, float]:
    """A field of a choice that is a beam; other choices have none."""
    return NO_SCORE if score is None else {"score": score}


def receipt_object(generation: Generation) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(generation.receipt)
    return built


def pair_logprobs(tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> Logprobs:
    return list(zip(tokens, logprobs, strict=True)) if logprobs else []


def prompt_logprobs_list(
    prompt: Sequence[int], logprobs: Sequence[TokenLogprobs], vocabulary: Vocabulary
) -> list[dict[str, Any] | None]:
    """As vLLM shapes them: per token a map from id to figures, the token itself among them; null for the first."""
    entries: list[dict[str, Any] | None] = [None]
    for token, one in zip(prompt[1:], logprobs, strict=True):
        ranked = {
            top: (logprob, rank)
            for rank, (top, logprob) in enumerate(zip(one.top_ids, one.top_logprobs, strict=True), start=1)
        }
        ranked.setdefault(token, (one.logprob, one.rank))
        entries.append(
            {
                str(top): {"logprob": logprob, "rank": rank, "decoded_token": vocabulary.token_text(top)}
                for top, (logprob, rank) in ranked.items()
            }
        )
    return entries


def chat_logprobs(entries: Logprobs, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "content": [
            {
                **_chat_token(token, figures.logprob, vocabulary),
                "top_logprobs": [
                    _chat_token(top, logprob, vocabulary)
                    for top, logprob in zip(figures.top_ids, figures.top_logprobs, strict=True)
                ],
            }
            for token, figures in entries
        ],
        "refusal": None,
    }


def _chat_token(token: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    spelled = vocabulary.token_bytes(token)
    return {"token": spelled.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(spelled)}


def completion_logprobs(
    entries: Sequence[tuple[int, TokenLogprobs | None]], vocabulary: Vocabulary, text_offset: int
) -> dict[str, Any]:
    """`text_offset`: characters of this choice's tokens before the first entry. A prompt's first has no figures."""
    tokens = [vocabulary.token_text(token) for token, _ in entries]
    offsets = []
    for text in tokens:
        offsets.append(text_offset)
        text_offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [figures.logprob if figures is not None else None for _, figures in entries],
        "top_logprobs": [
            {
                vocabulary.token_text(top): logprob
                for top, logprob in zip(figures.top_ids, figures.top_logprobs, strict=True)
            }
            if figures is not None
            else None
            for _, figures in entries
        ],
        "text_offset": offsets,
    }
