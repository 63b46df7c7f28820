"""A small client of a running router: streams chat answers and completions over its OpenAI HTTP interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from wire.errors import ErrorCode, SpliceError

CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer. The last one has `finish`, and the receipt and usage of the whole."""

    text: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    receipt: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Whole:
    """One of several complete answers."""

    index: int
    text: str
    finish: str
    score: float | None = None
    """Of a beam search."""


class Client:
    """Use as a context manager. Every failure is a SpliceError, one in the middle of a stream too."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        headers = {"x-splice-receipt": "1"} | ({"authorization": f"Bearer {api_key}"} if api_key else {})
        self._url = url.rstrip("/")
        self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout_s, connect=CONNECT_S), trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[str]:
        with self._errors():
            response = self._http.get(f"{self._url}/v1/models")
        _check(response)
        return [str(model["id"]) for model in response.json()["data"]]

    def only_model(self) -> str:
        """The served model; SpliceError(model_not_found) unless there is exactly one."""
        names = self.models()
        if len(names) != 1:
            raise SpliceError(
                ErrorCode.MODEL_NOT_FOUND,
                f"{self._url} serves {names or 'no model'}; name one with --model",
                param="model",
            )
        return names[0]

    def chat(self, model: str, messages: list[dict[str, str]], **sampling: object) -> Iterator[Delta]:
        return self._stream("/v1/chat/completions", {"model": model, "messages": messages, **sampling})

    def complete(self, model: str, prompt: str, **sampling: object) -> Iterator[Delta]:
        return self._stream("/v1/completions", {"model": model, "prompt": prompt, **sampling})

    def complete_whole(self, model: str, prompt: str, **sampling: object) -> list[Whole]:
        """All answers at once, in the server's order."""
        body = {"model": model, "prompt": prompt, **sampling}
        body = {name: value for name, value in body.items() if value is not None}
        with self._errors():
            response = self._http.post(f"{self._url}/v1/completions", json=body)
        _check(response)
        return [
            Whole(int(each["index"]), str(each["text"]), str(each["finish_reason"]), each.get("score"))
            for each in response.json()["choices"]
        ]

    def _stream(self, path: str, body: dict[str, object]) -> Iterator[Delta]:
        body = {name: value for name, value in body.items() if value is not None}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        ended = False
        with self._errors(), self._http.stream("POST", self._url + path, json=body) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                _check(response)
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    yield _delta(json.loads(line[6:]))
        if not ended:
            raise SpliceError(ErrorCode.INTERNAL_ERROR, "the stream broke off; is the router still running?")

    def _errors(self) -> _TransportErrors:
        return _TransportErrors(self._url)


class _TransportErrors:
    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL | httpx.UnsupportedProtocol):
            raise SpliceError(
                ErrorCode.MISSING_PART,
                f"nothing answers at {self._url} ({error}); "
                "start it with `splice serve` or give its address with --url",
                param="url",
            ) from None
        if isinstance(error, httpx.HTTPError):
            raise SpliceError(
                ErrorCode.INTERNAL_ERROR, f"the connection to {self._url} broke: {error or type(error).__name__}"
            ) from None


def _delta(chunk: dict[str, Any]) -> Delta:
    if error := chunk.get("error"):
        raise _from_body(error)
    choice: dict[str, Any] = next(iter(chunk.get("choices") or ()), {})
    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return Delta(text, choice.get("finish_reason"), chunk.get("usage") or {}, chunk.get("splice_receipt") or {})


def _check(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.OK:
        return
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": f"HTTP {response.status_code}: {response.text[:200]}"}
    raise _from_body(error)


def _from_body(error: dict[str, Any]) -> SpliceError:
    try:
        code = ErrorCode(error.get("code"))
    except ValueError:
        code = ErrorCode.INTERNAL_ERROR
    return SpliceError(code, str(error.get("message", "no reason given")), param=error.get("param"))
