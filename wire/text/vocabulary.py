"""The tokenizer's vocabulary seen from the output side: what each token id stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from wire.errors import ErrorCode, SpliceError
from wire.model_card import ModelCard

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START = "\u2581"


class Vocabulary:
    """Read-only; shared by all requests of a model."""

    def __init__(self, tokenizer: Tokenizer, tokenizer_json: str) -> None:
        self._tokenizer = tokenizer
        self.is_byte_level = _uses_byte_level(json.loads(tokenizer_json).get("decoder"))
        added: dict[int, Any] = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._bytes: dict[int, bytes] = {}

    def decode(self, token_ids: Sequence[int]) -> str:
        """All ids, special ones included."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes a token contributes; half a character for some. Unknown ids contribute nothing."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """For people to read, as in logprobs: incomplete characters show as replacement characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def is_byte_token(self, token_id: int) -> bool:
        piece = self._tokenizer.id_to_token(token_id)
        return piece is not None and _BYTE_TOKEN.fullmatch(piece) is not None

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            content: str = self._added[token_id]
            return content.encode()
        piece: str | None = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self.is_byte_level:
            alphabet = _byte_alphabet()
            if all(character in alphabet for character in piece):
                return bytes(alphabet[character] for character in piece)
            return piece.encode()
        byte = _BYTE_TOKEN.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(_WORD_START, " ").encode()


def load_tokenizer(card: ModelCard) -> Tokenizer:
    """That of a card; raises SpliceError (bad_model_file)."""
    try:
        tokenizer = Tokenizer.from_str(card.tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise SpliceError(ErrorCode.BAD_MODEL_FILE, f"the tokenizer of {card.name!r} is unusable: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _uses_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    if decoder.get("type") == "Sequence":
        parts = decoder.get("decoders", [])
        return len(parts) == 1 and _uses_byte_level(parts[0])
    return decoder.get("type") == "ByteLevel"


@cache
def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character: itself if it has one, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
