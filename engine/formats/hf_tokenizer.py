"""The text side of a Hugging Face directory: tokenizer.json and the files that may stand beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.fields import Fields, read_json_object
from wire.model_card import TokenizerData


def tokenizer_from_directory(directory: Path, config: Fields, vocab_size: int) -> TokenizerData:
    """`config` is config.json. Raises SpliceError (bad_model_file) when a file is missing or damaged."""
    tokenizer, text = _tokenizer(expect_tokenizer(directory), vocab_size)
    settings = _optional(directory / "tokenizer_config.json")
    generation = _optional(directory / "generation_config.json")
    bos, eos = _token(settings, "bos_token"), _token(settings, "eos_token")
    bos_id = tokenizer.token_to_id(bos) if bos is not None else config.integer_or("bos_token_id", None)
    ends = _ids(generation if generation.values.get("eos_token_id") is not None else config, "eos_token_id")
    if eos is not None and (eos_id := tokenizer.token_to_id(eos)) is not None:
        ends = (*ends, eos_id)
    for token_id in (*ends, *([] if bos_id is None else [bos_id])):
        if not 0 <= token_id < vocab_size:
            raise bad_file(directory, f"special token id {token_id}, expected one below {vocab_size}", DOWNLOAD_AGAIN)
    if bos is None and bos_id is not None:
        bos = tokenizer.id_to_token(bos_id)
    if eos is None and ends:
        eos = tokenizer.id_to_token(ends[0])
    return TokenizerData(
        tokenizer_json=text,
        chat_template=_chat_template(directory, settings),
        bos_token=bos,
        eos_token=eos,
        bos_token_id=bos_id,
        eos_token_ids=tuple(sorted(set(ends))),
        # The file's own post-processor knows best whether plain text starts with BOS.
        add_bos=bos_id is not None and tokenizer.encode("x").ids[:1] == [bos_id],
    )


def expect_tokenizer(directory: Path) -> Path:
    """Its tokenizer.json; raises SpliceError (bad_model_file) when there is none."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise bad_file(path, "file is missing", "save the model's fast tokenizer (tokenizer.json) beside its weights")
    return path


def _tokenizer(path: Path, vocab_size: int) -> tuple[Tokenizer, str]:
    try:
        text = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise bad_file(path, f"not readable as a tokenizer ({error})", DOWNLOAD_AGAIN) from error
    if max(tokenizer.get_vocab().values(), default=0) >= vocab_size:
        raise bad_file(
            path,
            f"token ids reach {max(tokenizer.get_vocab().values())}, the model's vocabulary is {vocab_size}",
            "use tokenizer and weights of one model",
        )
    return tokenizer, text


def _optional(path: Path) -> Fields:
    return read_json_object(path) if path.is_file() else Fields(path, {})


def _token(settings: Fields, key: str) -> str | None:
    """A special token, written as a string or as an object with `content`."""
    value = settings.values.get(key)
    return settings.section(key).string("content") if isinstance(value, dict) else settings.string_or(key, None)


def _ids(fields: Fields, key: str) -> tuple[int, ...]:
    value = fields.values.get(key)
    listed: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in listed):
        raise fields.wrong(key, "a token id or a list of them")
    return tuple(listed)


def _chat_template(directory: Path, settings: Fields) -> str | None:
    """The separate file wins; in tokenizer_config.json it is a string, or a list of named ones with a `default`."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise bad_file(path, f"not UTF-8 ({error})", DOWNLOAD_AGAIN) from error
    value = settings.values.get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    if value is None or isinstance(value, str):
        return value
    raise settings.wrong("chat_template", "a template or a list of named templates with one named default")
