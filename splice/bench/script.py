"""What one client says: one request, or a conversation in which each question carries the answers before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from splice.bench.dialect import Dialect
from splice.bench.prompts import TextOf, output_length, prompt_ids, prompt_text
from splice.bench.workload import MultiTurn, Workload


@dataclass(frozen=True, slots=True)
class Ask:
    """One request body."""

    path: str
    body: bytes
    output_tokens: int


class ScriptWriter:
    """Makes all bodies of a run. Single requests are made before the run begins, further turns as answers come."""

    def __init__(
        self, workload: Workload, model: str, dialect: Dialect, seed: tuple[int, ...], text_of: TextOf | None
    ) -> None:
        self._workload, self._model, self._dialect, self._seed, self._text_of = workload, model, dialect, seed, text_of

    @property
    def turns(self) -> int:
        prompt = self._workload.prompt
        return prompt.turns if isinstance(prompt, MultiTurn) else 1

    @property
    def think_s(self) -> float:
        prompt = self._workload.prompt
        return prompt.think_s if isinstance(prompt, MultiTurn) else 0.0

    def ask(self, index: int, answers: Sequence[str] = ()) -> Ask:
        """The next request of script `index`, after `answers` to its earlier ones."""
        workload, tokens = self._workload, output_length(self._workload, index)
        match workload.form:
            case "ids":
                return self._encode("/v1/completions", {"prompt": prompt_ids(workload, index, self._seed)}, tokens)
            case "text":
                return self._encode("/v1/completions", {"prompt": self._text(index, 0)}, tokens)
            case "chat":
                messages = []
                for turn, answer in enumerate(answers):
                    messages.append({"role": "user", "content": self._text(index, turn)})
                    messages.append({"role": "assistant", "content": answer})
                messages.append({"role": "user", "content": self._text(index, len(answers))})
                return self._encode("/v1/chat/completions", {"messages": messages}, tokens)

    def _text(self, index: int, turn: int) -> str:
        if self._text_of is None:
            raise ValueError("text needs a tokenizer: the run was not checked")
        return prompt_text(self._workload, index, (*self._seed, turn), self._text_of)

    def _encode(self, path: str, prompt: dict[str, Any], tokens: int) -> Ask:
        body = {
            "model": self._model,
            **prompt,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._dialect.fields(tokens),
        }
        return Ask(path, msgspec.json.encode(body), tokens)
