"""Tokenizers built from GGUF metadata cut text as the models were trained to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from engine.formats.fields import Fields
from engine.formats.gguf_tokenizer import tokenizer_from_gguf
from wire.errors import SpliceError
from wire.model_card import TokenizerData

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def _build(values: dict[str, Any]) -> TokenizerData:
    fields = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return tokenizer_from_gguf(Fields(Path("m.gguf"), fields), vocab_size=1000)


def _byte_level(pre: str) -> TokenizerData:
    """Every pair of digits, and a line feed after an exclamation mark, would merge if they stood in one word."""
    digit_pairs = [f"{a}{b}" for a in "123456" for b in "123456"]
    tokens = [*ALPHABET, *digit_pairs, "!Ċ", "<|im_end|>"]
    merges = [f"{pair[0]} {pair[1]}" for pair in digit_pairs]
    types = [1] * (len(tokens) - 1) + [3]
    values = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": [*merges, "! Ċ"], "token_type": types}
    return _build({**values, "bos_token_id": 3, "eos_token_id": 4})


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["1", "2", "3", "4", "!", "Ċ"]),
        ("qwen2", ["1", "2", "3", "4", "!Ċ"]),
        ("llama-bpe", ["12", "3", "4", "!Ċ"]),
        ("gpt-2", ["12", "34", "!", "Ċ"]),
    ],
)
def test_words_are_split_as_each_family_does(pre: str, pieces: list[str]) -> None:
    tokenizer = Tokenizer.from_str(_byte_level(pre).tokenizer_json)
    assert tokenizer.encode("1234!\n").tokens == pieces
    assert tokenizer.decode(tokenizer.encode("Grüße, 日本 1234!\n").ids) == "Grüße, 日本 1234!\n"


def test_end_of_turn_tokens_end_an_answer_and_only_llama3_adds_bos_by_itself() -> None:
    data = _byte_level("smollm")
    assert data.eos_token_ids == (4, len(ALPHABET) + 37)
    assert not data.add_bos
    assert _byte_level("llama-bpe").add_bos


def _sentencepiece(**changes: Any) -> TokenizerData:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab"]
    scores = [0.0] * len(pieces) + [-20.0, -21.0, -22.0, -23.0, -1.0, -2.0, -3.0, -0.5]
    types = [2, 3, 3, *[6] * 256, *[1] * len(words)]
    values = {"model": "llama", "tokens": [*pieces, *words], "scores": scores, "token_type": types}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return _build({**values, **ids, **changes})


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes() -> None:
    data = _sentencepiece()
    tokenizer = Tokenizer.from_str(data.tokenizer_json)
    assert tokenizer.encode("abc abc").tokens == ["▁ab", "c", "▁ab", "c"]
    assert tokenizer.encode("é").tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é 日").ids) == "abc é 日"
    assert tokenizer.encode("</s>").ids == [2]
    assert (data.add_bos, data.bos_token, data.eos_token_ids) == (True, "<s>", (2,))


def test_a_file_may_forbid_the_leading_space() -> None:
    tokenizer = Tokenizer.from_str(_sentencepiece(add_space_prefix=False).tokenizer_json)
    assert tokenizer.encode("abc").tokens == ["ab", "c"]
    assert tokenizer.decode(tokenizer.encode(" abc").ids) == " abc"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": "bert"}, "'bert'"),
        ({"model": None}, "'tokenizer.ggml.model' is missing"),
        ({"scores": [1.0]}, "1 token scores"),
        ({"token_type": [1]}, "1 token types"),
        ({"eos_token_id": 5000}, "5000"),
        ({"unknown_token_id": -1}, "-1"),
        ({"tokens": ["a", "a"]}, "1 different"),
    ],
)
def test_inconsistent_tokenizers_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(SpliceError, match=word):
        _sentencepiece(**changes)
