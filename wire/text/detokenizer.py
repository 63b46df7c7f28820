"""Token ids to text, one at a time, without ever showing half a character."""

from __future__ import annotations

import codecs
from typing import Protocol

from wire.text.vocabulary import Vocabulary

_UTF8_DECODER = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    """What `push` and `flush` return, joined, equals decoding all ids at once."""

    def push(self, token_id: int) -> str:
        """Text that became certain with this token; empty while a character is incomplete."""

    def flush(self) -> str:
        """The answer ended: the rest, with a replacement character where bytes never became a character."""

    def copy(self) -> Detokenizer:
        """Another one that stands where this one does and goes on by itself."""


class ByteLevelDetokenizer:
    """For byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): every token is a string of bytes."""

    def __init__(self, vocabulary: Vocabulary, *, skip_special_tokens: bool = True) -> None:
        self._vocabulary = vocabulary
        self._skip = skip_special_tokens
        self._decoder = _UTF8_DECODER(errors="replace")

    def push(self, token_id: int) -> str:
        if self._skip and token_id in self._vocabulary.special_ids:
            return ""
        return self._decoder.decode(self._vocabulary.token_bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def copy(self) -> ByteLevelDetokenizer:
        other = ByteLevelDetokenizer(self._vocabulary, skip_special_tokens=self._skip)
        other._decoder.setstate(self._decoder.getstate())
        return other


class WindowDetokenizer:
    """For every other decoder (SentencePiece with byte fallback, WordPiece): decodes a short window again and again.

    New text is what the window's text grew by. A run of byte tokens is decoded when it ends, because its decoder judges
    the run as a whole.
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special_tokens: bool = True) -> None:
        self._vocabulary = vocabulary
        self._skip = skip_special_tokens
        self._context: list[int] = []
        """Tokens shown already that the next ones are decoded behind, so that joints (spaces) come out right."""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        if self._skip and token_id in self._vocabulary.special_ids:
            return ""
        if self._vocabulary.is_byte_token(token_id):
            self._pending.append(token_id)
            return ""
        shown = self._show() if self._pending else ""
        self._pending.append(token_id)
        return shown + self._show()

    def flush(self) -> str:
        return self._show() if self._pending else ""

    def copy(self) -> WindowDetokenizer:
        other = WindowDetokenizer(self._vocabulary, skip_special_tokens=self._skip)
        other._context, other._pending = self._context, list(self._pending)
        return other

    def _show(self) -> str:
        before = self._vocabulary.decode(self._context)
        after = self._vocabulary.decode([*self._context, *self._pending])
        if before and not after.startswith(before):
            raise ValueError("the tokenizer's decoder rewrites text that it gave out before")
        self._context, self._pending = ([*self._context, *self._pending])[-_CONTEXT_TOKENS:], []
        return after[len(before) :]


_CONTEXT_TOKENS = 8


def make_detokenizer(vocabulary: Vocabulary, *, skip_special_tokens: bool = True) -> Detokenizer:
    kind = ByteLevelDetokenizer if vocabulary.is_byte_level else WindowDetokenizer
    return kind(vocabulary, skip_special_tokens=skip_special_tokens)
