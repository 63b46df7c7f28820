"""Reads one streamed answer: when its pieces came, what they add up to, and whether it is complete."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from splice.bench.sse import EventParser
from wire.errors import ErrorCode, SpliceError


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Event)
_DONE = b"[DONE]"


class StreamedAnswer:
    """A body sink for one request. Times are those of the reads, on the caller's clock."""

    def __init__(self) -> None:
        self.piece_times_s: list[float] = []
        self.finish: str | None = None
        self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.done = False
        self._parser = EventParser()
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def text_digest(self) -> str:
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()

    def feed(self, now_s: float, chunk: bytes) -> None:
        """Raises SpliceError when the server reports a failure in the stream, or sends what is not JSON."""
        for event in self._parser.feed(chunk):
            if event == _DONE:
                self.done = True
                continue
            try:
                decoded = _DECODER.decode(event)
            except msgspec.DecodeError as error:
                raise SpliceError(
                    ErrorCode.INTERNAL_ERROR, f"the server sent an event that is no chunk ({error}): {event[:200]!r}"
                ) from None
            self._take(now_s, decoded)

    def problem(self, wanted_tokens: int, *, exact: bool) -> str | None:
        """Why the answer does not count, or None. `exact`: it must have precisely `wanted_tokens`."""
        if not self.done:
            return "the stream ended without its end mark"
        if self.finish is None:
            return "the stream ended without a finish reason"
        if not self.output_tokens:
            return "the server reported no usage; it must honour stream_options.include_usage"
        if exact and self.output_tokens != wanted_tokens:
            return f"{self.output_tokens} tokens came, {wanted_tokens} were asked for"
        return None

    def _take(self, now_s: float, event: _Event) -> None:
        if event.error is not None:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, f"the server reported in the stream: {error_text(event.error)}")
        for choice in event.choices:
            text = choice.text
            if text is None and choice.delta is not None:
                text = choice.delta.content or choice.delta.reasoning_content
            if text:
                self._texts.append(text)
                self.piece_times_s.append(now_s)
            self.finish = choice.finish_reason or self.finish
        if event.usage is not None:
            self.prompt_tokens = event.usage.prompt_tokens
            self.output_tokens = event.usage.completion_tokens
            details = event.usage.prompt_tokens_details
            self.cached_tokens = (details.cached_tokens or 0) if details else 0


def error_text(error: Any) -> str:
    """The words in an OpenAI error object, or whatever came instead."""
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:500]


def body_error(status: int, body: bytes) -> str:
    """The words of an HTTP answer that is not 200."""
    try:
        error = msgspec.json.decode(body)["error"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"HTTP {status}: {body[:300].decode(errors='replace')}"
    return f"HTTP {status}: {error_text(error)}"
