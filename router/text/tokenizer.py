"""Text to token ids for one model; long texts are encoded beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

from router.text.bad_words import bad_word_sequences
from router.text.template import ChatMessage, ChatTemplate
from wire.model_card import ModelCard
from wire.text.vocabulary import Vocabulary, load_tokenizer

_INLINE_CHARACTERS = 8_192
"""Shorter texts take well under a millisecond: a thread would cost more than it spares."""


class ModelText:
    """Everything about text of one model card: encode, render, decode."""

    def __init__(self, card: ModelCard, now: Callable[[], datetime]) -> None:
        self.card = card
        self._tokenizer = load_tokenizer(card)
        self.vocabulary = Vocabulary(self._tokenizer, card.tokenizer_json)
        self._template = ChatTemplate(card, now)

    async def encode(self, text: str, *, add_bos: bool) -> tuple[int, ...]:
        """Token ids of plain text. Special tokens written in it are recognised, as the template needs them to be."""
        if len(text) <= _INLINE_CHARACTERS:
            return self._encode(text, add_bos)
        return await asyncio.to_thread(self._encode, text, add_bos)

    async def encode_prompt(self, text: str) -> tuple[int, ...]:
        """A completion prompt: begins with the BOS token where the model wants one."""
        return await self.encode(text, add_bos=self.card.add_bos)

    async def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Messages rendered through the template, which writes BOS itself."""
        size = sum(len(str(message.get("content") or "")) for message in messages)
        if size <= _INLINE_CHARACTERS:
            return self._encode(self._template.render(messages), False)
        rendered = await asyncio.to_thread(self._template.render, messages)
        return await self.encode(rendered, add_bos=False)

    def bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """See `router.text.bad_words`."""
        return bad_word_sequences(words, lambda text: self._encode(text, False))

    def _encode(self, text: str, add_bos: bool) -> tuple[int, ...]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if add_bos and self.card.bos_token_id is not None and ids[:1] != [self.card.bos_token_id]:
            return (self.card.bos_token_id, *ids)
        return tuple(ids)
