"""The one validator of every front door: what comes out of here is safe to send to a worker."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wire.errors import ErrorCode, SpliceError
from wire.model_card import ModelCard
from wire.sampling import SamplingParams

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 4096
MAX_PROMPTS = 64
MAX_SEQUENCES = 128
"""Prompts times choices of one HTTP request."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_UNSERVED_MESSAGE_PARTS = ("tool_calls", "function_call", "audio", "refusal", "tool_call_id")


@dataclass(frozen=True, slots=True)
class Requested:
    """Sampling as the client asked for it, checked; None where the client left it to us."""

    max_tokens: int | None
    seed: int | None
    n: int
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    logprobs: int | None
    base: SamplingParams
    """Everything that needs neither the prompt's length nor a drawn seed."""


def read_sampling(body: Mapping[str, Any], card: ModelCard, *, logprobs: int | None) -> Requested:
    """Checks the sampling fields of `body`; raises invalid_request naming field, value and range."""
    max_tokens_field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    max_tokens = integer(body, max_tokens_field, 1, 2**31 - 1)
    min_tokens = integer(body, "min_tokens", 0, 2**31 - 1) or 0
    if max_tokens is not None and min_tokens > max_tokens:
        raise invalid("min_tokens", f"{min_tokens} exceeds {max_tokens_field} {max_tokens}")
    base = SamplingParams(
        max_tokens=0,
        min_tokens=min_tokens,
        temperature=_or(number(body, "temperature", 0.0, 2.0), 1.0),
        top_p=_or(number(body, "top_p", 0.0, 1.0, above=True), 1.0),
        top_k=_top_k(body, card.vocab_size),
        min_p=_or(number(body, "min_p", 0.0, 1.0), 0.0),
        repetition_penalty=_or(number(body, "repetition_penalty", 0.0, 2.0, above=True), 1.0),
        frequency_penalty=_or(number(body, "frequency_penalty", -2.0, 2.0), 0.0),
        presence_penalty=_or(number(body, "presence_penalty", -2.0, 2.0), 0.0),
        logit_bias=_logit_bias(body.get("logit_bias"), card.vocab_size),
        stop_token_ids=_stop_token_ids(body.get("stop_token_ids"), card.vocab_size),
        ignore_eos=flag(body, "ignore_eos"),
        logprobs=logprobs,
    )
    return Requested(
        max_tokens=max_tokens,
        seed=_seed(body),
        n=integer(body, "n", 1, MAX_CHOICES) or 1,
        stop=_stops(body.get("stop")),
        include_stop=flag(body, "include_stop_str_in_output"),
        skip_special_tokens=flag(body, "skip_special_tokens", default=True),
        logprobs=logprobs,
        base=base,
    )


def complete(
    requested: Requested,
    card: ModelCard,
    num_prompt_tokens: int,
    *,
    limit: int,
    draw_seed: Callable[[], int],
    where: str,
) -> SamplingParams:
    """Fills in what depends on the prompt. `limit`: most tokens of prompt and answer together.

    Raises context_length_exceeded when they can never fit, naming `where` the prompt came from or `max_tokens`.
    """
    if num_prompt_tokens == 0:
        raise SpliceError(ErrorCode.INVALID_REQUEST, "the prompt is empty; give at least one token", param=where)
    room = limit - num_prompt_tokens
    wanted = requested.max_tokens if requested.max_tokens is not None else room
    if room < 1 or wanted > room:
        asked = f" and {requested.max_tokens} of answer" if requested.max_tokens is not None else ""
        raise SpliceError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"{num_prompt_tokens} tokens of prompt{asked} exceed the context of {card.name!r}, {limit} tokens; "
            "shorten the prompt or lower max_tokens",
            param=where if room < 1 else "max_tokens",
        )
    base = requested.base
    if base.min_tokens > wanted:
        raise invalid("min_tokens", f"{base.min_tokens} exceeds the {wanted} tokens of context that are left")
    return SamplingParams(
        max_tokens=wanted,
        min_tokens=base.min_tokens,
        temperature=base.temperature,
        top_p=base.top_p,
        top_k=base.top_k,
        min_p=base.min_p,
        repetition_penalty=base.repetition_penalty,
        frequency_penalty=base.frequency_penalty,
        presence_penalty=base.presence_penalty,
        logit_bias=base.logit_bias,
        seed=requested.seed if requested.seed is not None else draw_seed(),
        stop_token_ids=base.stop_token_ids,
        ignore_eos=base.ignore_eos,
        logprobs=base.logprobs,
    )


# Prompts --------------------------------------------------------------------------------------------------------------


def read_model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= 512:
        raise invalid("model", "must be the name of a served model")
    return model


def read_messages(value: Any) -> list[dict[str, str]]:
    """Messages with their content as one string each; text parts are joined."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise invalid("messages", f"must be a list of 1 to {MAX_MESSAGES} messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(value)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise invalid(where, "must be an object with role and content")
    for name, value in message.items():
        if name in ("role", "content", "name") or value is None:
            continue
        code = ErrorCode.UNSUPPORTED_PARAMETER if name in _UNSERVED_MESSAGE_PARTS else ErrorCode.UNKNOWN_FIELD
        raise SpliceError(code, f"{name[:64]!r} in a message is not supported", param=f"{where}.{name[:64]}")
    role = message.get("role")
    if role not in _ROLES:
        raise invalid(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    out = {"role": "system" if role == "developer" else str(role), "content": _content(message.get("content"), where)}
    name = message.get("name")
    if name is not None:
        if not isinstance(name, str):
            raise invalid(f"{where}.name", "must be a string")
        out["name"] = name
    return out


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise invalid(f"{where}.content", "must be a string or a list of text parts")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise SpliceError(
                ErrorCode.UNSUPPORTED_PARAMETER,
                f"only text parts are supported, not {str(kind)[:64]!r}",
                param=f"{where}.content[{index}].type",
            )
        if not isinstance(part.get("text"), str):
            raise invalid(f"{where}.content[{index}].text", "must be a string")
        texts.append(part["text"])
    return "".join(texts)


def read_prompts(value: Any, vocab_size: int) -> tuple[str | tuple[int, ...], ...]:
    """A string, a list of strings, a list of token ids, or a list of such lists."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise invalid("prompt", "must be a string, a list of strings, a list of token ids or a list of such lists")
    if isinstance(value[0], int):
        return (read_token_ids(value, vocab_size, "prompt"),)
    if len(value) > MAX_PROMPTS:
        raise invalid("prompt", f"holds {len(value)} prompts; at most {MAX_PROMPTS} go into one request")
    if all(isinstance(each, str) for each in value):
        return tuple(value)
    return tuple(read_token_ids(each, vocab_size, f"prompt[{index}]") for index, each in enumerate(value))


def read_token_ids(value: Any, vocab_size: int, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise invalid(where, "must be a non-empty list of token ids")
    for token in value:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise invalid(where, f"{str(token)[:32]} is not a token id of this model (0 to {vocab_size - 1})")
    return tuple(value)


def read_stream(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """(stream, include usage)."""
    stream = flag(body, "stream")
    options = body.get("stream_options")
    if options is None:
        return stream, False
    if not isinstance(options, dict):
        raise invalid("stream_options", "must be an object")
    if not stream:
        raise invalid("stream_options", "is allowed only with stream: true")
    for name in options:
        if name not in ("include_usage", "include_obfuscation", "continuous_usage_stats"):
            raise SpliceError(
                ErrorCode.UNKNOWN_FIELD, f"unknown field {name[:64]!r}", param=f"stream_options.{name[:64]}"
            )
    for name in ("include_obfuscation", "continuous_usage_stats"):
        if options.get(name):
            raise SpliceError(
                ErrorCode.UNSUPPORTED_PARAMETER, f"{name!r} is not supported", param=f"stream_options.{name}"
            )
    return stream, flag(options, "include_usage")


def read_chat_logprobs(body: Mapping[str, Any]) -> int | None:
    """`logprobs: bool` with `top_logprobs`."""
    wanted = flag(body, "logprobs")
    top = integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise invalid("top_logprobs", "is allowed only with logprobs: true")
    return (top or 0) if wanted else None


def read_completion_logprobs(body: Mapping[str, Any]) -> int | None:
    return integer(body, "logprobs", 0, MAX_TOP_LOGPROBS)


# Single fields --------------------------------------------------------------------------------------------------------


def invalid(param: str, problem: str) -> SpliceError:
    return SpliceError(ErrorCode.INVALID_REQUEST, f"{param}: {problem}", param=param)


def flag(body: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(name, "must be true or false")
    return value


def integer(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise invalid(name, f"must be a whole number from {low} to {high}, not {_shown(value)}")
    return value


def number(body: Mapping[str, Any], name: str, low: float, high: float, *, above: bool = False) -> float | None:
    """`above`: the low end itself is excluded."""
    value = body.get(name)
    if value is None:
        return None
    inside = (
        not isinstance(value, bool)
        and isinstance(value, int | float)
        and math.isfinite(value)
        and low <= value <= high
        and not (above and value == low)
    )
    if not inside:
        opening = "above" if above else "from"
        raise invalid(name, f"must be a number {opening} {low:g} to {high:g}, not {_shown(value)}")
    return float(value)


def _seed(body: Mapping[str, Any]) -> int | None:
    """Signed or unsigned 64 bits; a negative seed names the same bits."""
    seed = integer(body, "seed", -(2**63), 2**64 - 1)
    return None if seed is None else seed % 2**64


def _top_k(body: Mapping[str, Any], vocab_size: int) -> int:
    """0 and -1 both turn it off, as users of other engines write it; more than the vocabulary is the vocabulary."""
    top_k = integer(body, "top_k", -1, 2**31 - 1) or 0
    return min(max(top_k, 0), vocab_size)


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise invalid("stop", f"must be a string or a list of at most {MAX_STOPS} strings")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise invalid("stop", f"every stop string must have 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(stops)


def _stop_token_ids(value: Any, vocab_size: int) -> tuple[int, ...]:
    if value is None or value == []:
        return ()
    ids = read_token_ids(value, vocab_size, "stop_token_ids")
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise invalid("stop_token_ids", f"holds {len(ids)} ids; at most {MAX_STOP_TOKEN_IDS} are allowed")
    return ids


def _logit_bias(value: Any, vocab_size: int) -> dict[int, float]:
    """Keys are token ids as strings (JSON has no other keys) or whole numbers."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIAS:
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


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _shown(value: Any) -> str:
    return repr(value)[:64]
