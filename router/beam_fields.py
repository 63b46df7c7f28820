"""Beam search as a client asks for it, and what does not go with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from router.validate import MAX_CHOICES, flag, integer, invalid, number
from wire.sampling import BeamSearch, EarlyStopping

MAX_LENGTH_PENALTY = 10.0

_OWN: dict[str, Collection[Any]] = {"beam_width": (0,), "length_penalty": (1,), "early_stopping": (False,)}
"""Fields of a beam search, and the values that ask for nothing without one."""
_FOREIGN: dict[str, Collection[Any]] = {
    "temperature": (0,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "bad_words_ids": ([],),
}
"""Fields that draw or change single tokens, and the values that ask for nothing."""


def read_beam(body: Mapping[str, Any], n: int, stop: tuple[str, ...]) -> BeamSearch | None:
    """None unless `use_beam_search`. `beam_width` is `n` where it is not given; the `n` best of them are returned.

    `stop` has been read; whether special tokens are text counts only beside it.
    """
    if not flag(body, "use_beam_search"):
        _refuse(body, _OWN, "is allowed only with use_beam_search: true")
        return None
    _refuse(body, _FOREIGN, "does not go with use_beam_search, which is deterministic; leave it out")
    best_of = body.get("best_of")
    if best_of is not None and best_of != n:
        raise invalid("best_of", f"does not go with use_beam_search, which returns the n = {n} best of beam_width")
    width = integer(body, "beam_width", 0, MAX_CHOICES) or n
    if width < n:
        raise invalid("beam_width", f"{width} is less than n = {n}, the number of answers asked for")
    penalty = number(body, "length_penalty", -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    return BeamSearch(
        width=width,
        num_answers=n,
        length_penalty=1.0 if penalty is None else penalty,
        early_stopping=_early_stopping(body.get("early_stopping")),
        stop=stop,
        skip_special_tokens=flag(body, "skip_special_tokens", default=True),
    )


def _early_stopping(value: Any) -> EarlyStopping:
    if value is None or value is False:
        return EarlyStopping.FALSE
    if value is True:
        return EarlyStopping.TRUE
    if value == "never":
        return EarlyStopping.NEVER
    raise invalid("early_stopping", f'must be true, false or "never", not {str(value)[:32]!r}')


def _refuse(body: Mapping[str, Any], fields: Mapping[str, Collection[Any]], why: str) -> None:
    for name, neutral in fields.items():
        value = body.get(name)
        if value is not None and value not in neutral:
            raise invalid(name, why)
