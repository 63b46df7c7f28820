"""All a router needs to know of a model: it never loads weights, a worker hands it this card."""

from __future__ import annotations

import hashlib
from functools import cached_property

import msgspec


class TokenizerData(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's files say about its text side, whatever their format."""

    tokenizer_json: str
    """A `tokenizers` file as text."""
    chat_template: str | None
    """Jinja source; None means the model has no chat format."""
    bos_token: str | None
    eos_token: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Any of these ends an answer unless the request says `ignore_eos`."""
    add_bos: bool
    """Whether plain (untemplated) prompts begin with the BOS token."""


class ModelCard(TokenizerData, frozen=True, kw_only=True, dict=True):
    """Tokenizer, template and limits of one served model."""

    name: str
    """Served name, as clients write it in `model`."""
    architecture: str
    model_digest: str
    """32 hexadecimal digits over architecture and weights; equal digests mean equal models."""
    vocab_size: int
    max_model_len: int
    """Most tokens of prompt and answer together."""

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @cached_property
    def card_id(self) -> str:
        """Content hash, 32 hexadecimal digits. Megabytes are hashed, and every request asks: once for each card."""
        return hashlib.blake2b(self.encode(), digest_size=16).hexdigest()


def decode_card(raw: bytes) -> ModelCard:
    """Inverse of `ModelCard.encode`; raises msgspec.ValidationError on anything else."""
    return msgspec.json.decode(raw, type=ModelCard)
