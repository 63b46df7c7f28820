"""How each server spells \"exactly n tokens, greedy\" beyond the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Dialect:
    """`fields(n)` go into every request body beside model, prompt and stream."""

    name: str
    fields: Callable[[int], Mapping[str, Any]]
    exact: bool
    """Whether the server can be held to n tokens. If not, shorter answers are taken as they are."""


def _plain(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "temperature": 0.0}


def _ignoring_eos(tokens: int) -> dict[str, Any]:
    return {**_plain(tokens), "ignore_eos": True}


def _with_minimum(tokens: int) -> dict[str, Any]:
    return {**_ignoring_eos(tokens), "min_tokens": tokens}


DIALECTS: Mapping[str, Dialect] = {
    each.name: each
    for each in (
        Dialect("splice", _ignoring_eos, exact=True),
        Dialect("vllm", _with_minimum, exact=True),
        Dialect("sglang", _ignoring_eos, exact=True),
        Dialect("tensorrt-llm", _with_minimum, exact=True),
        Dialect("llama.cpp", _ignoring_eos, exact=True),
        Dialect("openai", _plain, exact=False),
    )
}
