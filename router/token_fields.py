"""Fields that name tokens or texts: which end an answer, which are wanted in it, and which are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.validate import invalid, number, read_token_ids

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_ALLOWED_TOKEN_IDS = 8192
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARACTERS = 256
MAX_BAD_WORD_TOKENS = 64


def read_stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise invalid("stop", f"must be a string or a list of at most {MAX_STOPS} strings")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise invalid("stop", f"every stop string must have 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(stops)


def read_stop_token_ids(value: Any, vocab_size: int) -> tuple[int, ...]:
    if value is None or value == []:
        return ()
    return _at_most(read_token_ids(value, vocab_size, "stop_token_ids"), MAX_STOP_TOKEN_IDS, "stop_token_ids")


def read_allowed_token_ids(value: Any, vocab_size: int) -> tuple[int, ...]:
    """None allows every token; an empty list would allow none and is refused."""
    if value is None:
        return ()
    ids = read_token_ids(value, vocab_size, "allowed_token_ids")
    return _at_most(ids, MAX_ALLOWED_TOKEN_IDS, "allowed_token_ids")


def read_bad_words(value: Any) -> tuple[str, ...]:
    """Texts; `router.text.bad_words` says which token sequences they are."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_BAD_WORDS:
        raise invalid("bad_words", f"must be a list of at most {MAX_BAD_WORDS} strings")
    for word in value:
        if not isinstance(word, str) or not 0 < len(word.strip()) <= len(word) <= MAX_BAD_WORD_CHARACTERS:
            raise invalid("bad_words", f"every word must have 1 to {MAX_BAD_WORD_CHARACTERS} characters, not blanks")
    return tuple(value)


def read_bad_words_ids(value: Any, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_BAD_WORDS:
        raise invalid("bad_words_ids", f"must be a list of at most {MAX_BAD_WORDS} lists of token ids")
    sequences = [read_token_ids(each, vocab_size, f"bad_words_ids[{index}]") for index, each in enumerate(value)]
    return tuple(_at_most(each, MAX_BAD_WORD_TOKENS, "bad_words_ids") for each in sequences)


def read_logit_bias(value: Any, vocab_size: int) -> dict[int, float]:
    """Keys are token ids as strings (JSON has no other keys) or whole numbers."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > MAX_LOGIT_BIAS:
        raise invalid("logit_bias", f"must be an object of at most {MAX_LOGIT_BIAS} token ids")
    bias: dict[int, float] = {}
    for key in value:
        text = str(key)
        if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < vocab_size):
            raise invalid("logit_bias", f"{text[:32]!r} is not a token id of this model (0 to {vocab_size - 1})")
        amount = number({"logit_bias": value[key]}, "logit_bias", -100.0, 100.0)
        if amount is None:
            raise invalid("logit_bias", f"the bias of token {text} must be a number")
        bias[int(text)] = amount
    return bias


def _at_most(ids: tuple[int, ...], most: int, name: str) -> tuple[int, ...]:
    if len(ids) > most:
        raise invalid(name, f"holds {len(ids)} ids; at most {most} are allowed")
    return ids
