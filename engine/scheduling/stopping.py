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
    is_longest = request.num_tokens + 1 >= config.max_model_len
    return is_longest or request.num_generated_tokens + 1 >= request.sampling.max_tokens


def finish_reason(request: Request, config: EngineConfig) -> FinishReason:
    """Whether the answer so far is complete, judged by its last token and its length alone.

    Also true of an attempt that starts with every token already emitted: its predecessor died between the last
    token and the word that it was the last.
    """
    generated = request.num_generated_tokens
    sampling = request.sampling
    may_stop = generated > 0 and generated >= sampling.min_tokens
    if may_stop and request.tokens[-1] in stopping_ids(sampling, config.eos_token_ids):
        return FinishReason.STOP
    if generated >= sampling.max_tokens or request.num_tokens >= config.max_model_len:
        return FinishReason.LENGTH
    return FinishReason.NONE
