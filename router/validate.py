"""Prompts and single fields, read and checked: each error names the field, its value and what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wire.errors import ErrorCode, SpliceError

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 4096
MAX_PROMPTS = 64
MAX_SEQUENCES = 128
"""Prompts times choices of one HTTP request."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_UNSERVED_MESSAGE_PARTS = ("tool_calls", "function_call", "audio", "refusal", "tool_call_id")


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


def _shown(value: Any) -> str:
    return repr(value)[:64]
