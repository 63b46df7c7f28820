"""From logits to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine import logit_filters
from engine.philox import DrawPurpose, uniform
from wire.errors import ErrorCode, SpliceError
from wire.sampling import SamplingParams, TokenLogprobs


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What the draw of one token depends on beside the logits."""

    params: SamplingParams
    tokens: Sequence[int]
    """Everything before the token drawn, whose absolute position is therefore `len(tokens)`."""
    num_prompt_tokens: int
    stopping_ids: Sequence[int] = ()
    """Tokens that would end the answer, not drawn before `min_tokens`."""


@dataclass(frozen=True, slots=True)
class DrawnToken:
    token: int
    logprobs: TokenLogprobs | None


def sample(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[DrawnToken | Exception]:
    """Draws one token per row; `logits` `[len(rows), vocab]` float32 on the CPU. A row that fails yields its error.

    Order of operations: logit_bias; repetition, then frequency and presence penalty; `min_tokens` forbids what would
    end the answer; greedy takes the largest, ties to the lowest token id; otherwise temperature, min_p, top_k, top_p
    (each over what the one before left), and one uniform number inverts the cumulative distribution, in float64, over
    the tokens left in ascending id. Rows are computed one by one, so none depends on its neighbours.
    """
    # max is exact whatever the order, and lets a NaN through: a row is usable exactly if its maximum is finite.
    usable = torch.isfinite(logits.amax(dim=-1)).tolist()
    likeliest = logits.argmax(dim=-1).tolist()
    drawn: list[DrawnToken | Exception] = []
    for index, row in enumerate(rows):
        if not usable[index]:
            drawn.append(
                SpliceError(
                    ErrorCode.INTERNAL_ERROR,
                    f"the model's logits at position {len(row.tokens)} are not finite; its weights or the request's KV "
                    "are damaged",
                )
            )
            continue
        try:
            drawn.append(_draw(logits[index], likeliest[index], row))
        except Exception as error:  # the boundary of one request: its neighbours go on
            drawn.append(error)
    return drawn


def _draw(logits: torch.Tensor, likeliest: int, row: SamplingRow) -> DrawnToken:
    params = row.params
    plain = _leaves_order_alone(row)
    if params.is_greedy and plain and params.logprobs is None:
        return DrawnToken(likeliest, None)
    own: NDArray[np.float64] = logits.numpy().astype(np.float64)
    adjusted = own if plain else _adjust(own.copy(), row)
    token = int(adjusted.argmax()) if params.is_greedy else _draw_at_random(adjusted, row)
    logprobs = None if params.logprobs is None else _logprobs(own, token, params.logprobs)
    return DrawnToken(token, logprobs)


def _leaves_order_alone(row: SamplingRow) -> bool:
    params = row.params
    return (
        not params.logit_bias
        and params.repetition_penalty == 1.0
        and params.frequency_penalty == 0.0
        and params.presence_penalty == 0.0
        and len(row.tokens) - row.num_prompt_tokens >= params.min_tokens
    )


def _adjust(logits: NDArray[np.float64], row: SamplingRow) -> NDArray[np.float64]:
    params = row.params
    logit_filters.add_bias(logits, params.logit_bias)
    logit_filters.penalise(
        logits,
        row.tokens,
        row.num_prompt_tokens,
        repetition=params.repetition_penalty,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
    )
    if len(row.tokens) - row.num_prompt_tokens < params.min_tokens:
        logit_filters.forbid(logits, row.stopping_ids)
    if not np.isfinite(logits.max()):
        raise SpliceError(
            ErrorCode.INVALID_REQUEST,
            "logit_bias, penalties and min_tokens leave no token that can be drawn; expected at least one",
            param="logit_bias",
        )
    return logits


def _draw_at_random(logits: NDArray[np.float64], row: SamplingRow) -> int:
    params = row.params
    weights = logit_filters.weigh(logits, params.temperature)
    ids = np.arange(len(weights), dtype=np.int64)
    if params.min_p > 0.0:
        ids = logit_filters.keep_min_p(ids, weights, params.min_p)
    if 0 < params.top_k < len(ids):
        ids = logit_filters.keep_top_k(ids, weights, params.top_k)
    if params.top_p < 1.0:
        ids = logit_filters.keep_top_p(ids, weights, params.top_p)
    ids = np.sort(ids)
    cumulative = np.cumsum(weights[ids])
    point = uniform(params.seed, params.choice, len(row.tokens), DrawPurpose.TOKEN) * cumulative[-1]
    return int(ids[np.searchsorted(cumulative, point, side="right")])


def _logprobs(logits: NDArray[np.float64], token: int, num_top: int) -> TokenLogprobs:
    """Of the model's own distribution: natural logarithms, before anything the request asked for."""
    largest = logits.max()
    with np.errstate(under="ignore"):
        log_total = largest + np.log(np.exp(logits - largest).sum())
    ids = np.arange(len(logits), dtype=np.int64)
    top = logit_filters.keep_top_k(ids, logits, num_top) if num_top else ids[:0]
    return TokenLogprobs(
        logprob=float(logits[token] - log_total),
        top_ids=tuple(int(i) for i in top),
        top_logprobs=tuple(float(logits[i] - log_total) for i in top),
    )
