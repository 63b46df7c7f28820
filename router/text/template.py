"""Chat templates: Jinja in a sandbox, with the names Hugging Face templates expect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from wire.errors import ErrorCode, SpliceError
from wire.model_card import ModelCard

ChatMessage = Mapping[str, Any]


class ChatTemplate:
    """The template of one model, compiled once. `now` supplies the date that some templates print."""

    def __init__(self, card: ModelCard, now: Callable[[], datetime]) -> None:
        self._card = card
        self._template: jinja2.Template | None = None
        if card.chat_template is None:
            return
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols],
            autoescape=False,
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
        try:
            self._template = environment.from_string(card.chat_template)
        except jinja2.TemplateError as error:
            raise SpliceError(
                ErrorCode.BAD_MODEL_FILE, f"the chat template of {card.name!r} does not compile: {error}"
            ) from error

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt text, ending where the assistant's answer begins. Raises invalid_request naming `messages`."""
        if self._template is None:
            raise SpliceError(
                ErrorCode.INVALID_REQUEST,
                f"model {self._card.name!r} has no chat template; use /v1/completions",
                param="messages",
            )
        try:
            return self._template.render(
                messages=list(messages),
                bos_token=self._card.bos_token or "",
                eos_token=self._card.eos_token or "",
                add_generation_prompt=True,
                tools=None,
                documents=None,
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            ArithmeticError,
        ) as e:
            raise SpliceError(
                ErrorCode.INVALID_REQUEST,
                f"the chat template of {self._card.name!r} refuses these messages: {e}",
                param="messages",
            ) from e


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Unlike Jinja's own filter, does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
