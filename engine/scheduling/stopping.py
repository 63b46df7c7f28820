"""When a request ends."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.scheduling.request import Request
from wire.sampling import FinishReason, SamplingParams


def stopping_ids(sampling: SamplingParams, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens that end the answer; the one drawn is part of it. Stop strings are the router's business."""
    return sampling.stop_token_ids if sampling.ignore_eos else (*sampling.stop_token_ids, *eos_token_ids)


def ends_with_next(request: Request, config: EngineConfig) -> bool:
    """Whether the next token is the last one, whichever it is."""
    count = len(request.tokens) + 1
    return count >= config.max_model_len or count - request.num_prompt_tokens >= request.sampling.max_tokens


def finish_reason(request: Request, config: EngineConfig) -> FinishReason:
    """Whether the answer so far is complete, judged by its last token and its length alone.

    Also true of an attempt that starts with every token already emitted: its predecessor died between the last
    token and the word that it was the last.
    """
    tokens, sampling = request.tokens, request.sampling
    generated = len(tokens) - request.num_prompt_tokens
    if generated > 0 and generated >= sampling.min_tokens:
        last = tokens[-1]
        if last in sampling.stop_token_ids or (last in config.eos_token_ids and not sampling.ignore_eos):
            return FinishReason.STOP
    if generated >= sampling.max_tokens or len(tokens) >= config.max_model_len:
        return FinishReason.LENGTH
    return FinishReason.NONE
