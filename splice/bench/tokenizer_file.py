"""The tokenizer that text of exact length needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from wire.errors import ErrorCode, SpliceError


def open_tokenizer(path: Path) -> Tokenizer:
    """From a `tokenizer.json`, a Hugging Face directory or a GGUF file. Raises SpliceError(bad_setting)."""
    try:
        if path.is_file() and path.suffix == ".gguf":
            return _from_gguf(path)
        return Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
    except SpliceError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise SpliceError(
            ErrorCode.BAD_SETTING,
            f"{path} holds no usable tokenizer ({error}); expected a tokenizer.json, a directory with one, or a GGUF",
            param="tokenizer",
        ) from None


def _from_gguf(path: Path) -> Tokenizer:
    from engine.formats.fields import Fields  # noqa: PLC0415 (only texts for a GGUF need the engine)
    from engine.formats.gguf_header import read_header  # noqa: PLC0415
    from engine.formats.gguf_tokenizer import tokenizer_from_gguf  # noqa: PLC0415

    header = read_header(np.memmap(path, mode="r").data)
    vocab_size = header.tensors["token_embd.weight"].shape[0]
    return Tokenizer.from_str(tokenizer_from_gguf(Fields(path, header.pairs), vocab_size).tokenizer_json)
