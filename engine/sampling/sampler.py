"""From logits to tokens: the order of operations is in docs/sampling.md, the arithmetic in csrc/sampling."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine._sampling import NOT_FINITE, NOTHING_LEFT, Plan, Sampler
from wire.errors import ErrorCode, SpliceError
from wire.sampling import SamplingParams, TokenLogprobs

Logits = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class SamplingRow:
    """What the draw of one token depends on beside the logits; good for every token of a request, which it follows."""

    params: SamplingParams
    tokens: list[int]
    """Everything before the token drawn, whose absolute position is therefore `len(tokens)`; read anew in each draw."""
    num_prompt_tokens: int
    stopping_ids: Sequence[int] = ()
    """Tokens that would end the answer, not drawn before `min_tokens`."""
    packed: bytes = field(default=b"", init=False, repr=False)
    """The parameters of a plain row as a device takes them, kept here by whoever draws there."""
    _plan: Plan | None = field(default=None, init=False, repr=False)
    _is_greedy: bool = field(init=False, repr=False)
    _is_plain: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        params = self.params
        # No logit is changed or forbidden before temperature and filters.
        unchanged = (
            not params.logit_bias
            and not params.allowed_token_ids
            and not params.bad_words
            and params.repetition_penalty == 1.0
            and params.frequency_penalty == 0.0
            and params.presence_penalty == 0.0
        )
        filters = params.is_greedy or params.typical_p == 1.0
        self._is_greedy = params.is_greedy and unchanged
        self._is_plain = params.logprobs is None and filters and unchanged

    @property
    def plan(self) -> Plan:
        """The parameters as the native code takes them, made once."""
        if self._plan is None:
            self._plan = _plan(self.params, self.stopping_ids)
        return self._plan

    @property
    def is_argmax(self) -> bool:
        """Nothing but the largest logit matters."""
        return self._is_greedy and self._may_stop()

    @property
    def is_plain(self) -> bool:
        """Temperature, min_p, top_k and top_p say all there is to say, and no more is wanted than the token."""
        return self._is_plain and (not self.params.min_tokens or self._may_stop())

    def _may_stop(self) -> bool:
        return len(self.tokens) - self.num_prompt_tokens >= self.params.min_tokens


class DrawnToken(msgspec.Struct, frozen=True):
    token: int
    logprobs: TokenLogprobs | None


def sample(logits: ArrayLike, rows: Sequence[SamplingRow]) -> list[DrawnToken | Exception]:
    """Draws one token per row; `logits` `[len(rows), vocab]` float32 on the CPU. A row that fails yields its error.

    Rows are computed one by one, so none depends on its neighbours; see docs/sampling.md for what happens to each.
    """
    array: Logits = np.asarray(logits)
    best = _thread.sampler.argmax(array) if any(row.is_argmax for row in rows) else []
    drawn: list[DrawnToken | Exception] = []
    for index, row in enumerate(rows):
        try:
            drawn.append(_draw(array, index, row, best))
        except Exception as error:  # the boundary of one request: its neighbours go on
            drawn.append(error)
    return drawn


def token_logprobs(logits: ArrayLike, tokens: Sequence[int], num_top: int) -> list[TokenLogprobs | None]:
    """Per row of `logits` `[len(tokens), vocab]` float32: of its token, and of the `num_top` likeliest.

    None where a row is not finite. Natural logarithms, in float64, before anything a request asks for.
    """
    found = _thread.sampler.logprobs(np.asarray(logits), tokens, num_top)
    return [None if one is None else TokenLogprobs(one[0], tuple(one[2]), tuple(one[3]), one[1]) for one in found]


def not_finite(position: int) -> SpliceError:
    """What a request ends with whose logits for `position` cannot be used."""
    return SpliceError(
        ErrorCode.INTERNAL_ERROR,
        f"the model's logits at position {position} are not finite; its weights or the request's KV are damaged",
    )


def _draw(array: Logits, index: int, row: SamplingRow, best: list[int]) -> DrawnToken:
    if row.is_argmax:
        token = best[index]
    else:
        token = _thread.sampler.draw(array, index, row.plan, row.tokens, row.num_prompt_tokens)
    if token == NOT_FINITE:
        raise not_finite(len(row.tokens))
    if token == NOTHING_LEFT:
        raise SpliceError(
            ErrorCode.INVALID_REQUEST,
            "allowed_token_ids, bad_words, logit_bias, penalties and min_tokens leave no token that can be drawn; "
            "expected at least one",
            param="logit_bias",
        )
    if row.params.logprobs is None:
        return DrawnToken(token, None)
    return DrawnToken(token, token_logprobs(array[index : index + 1], [token], row.params.logprobs)[0])


def _plan(params: SamplingParams, stopping_ids: Sequence[int]) -> Plan:
    return Plan(
        temperature=params.temperature,
        min_p=params.min_p,
        top_k=params.top_k,
        typical_p=params.typical_p,
        top_p=params.top_p,
        seed=params.seed & 0xFFFF_FFFF_FFFF_FFFF,
        choice=params.choice,
        allowed=params.allowed_token_ids or None,
        bad=params.bad_words,
        bias=list(params.logit_bias.items()),
        stopping=stopping_ids,
        min_tokens=params.min_tokens,
        repetition=params.repetition_penalty,
        frequency=params.frequency_penalty,
        presence=params.presence_penalty,
    )


class _Thread(threading.local):
    """The native sampler keeps scratch memory, so each thread has one."""

    def __init__(self) -> None:
        self.sampler = Sampler()


_thread = _Thread()
