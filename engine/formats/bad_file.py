"""How this room says that a file cannot be used."""

from __future__ import annotations

from pathlib import Path

from wire.errors import ErrorCode, SpliceError


def bad_file(path: Path, what: str, remedy: str) -> SpliceError:
    """`what` names the tensor or field and what was expected; `remedy` is an imperative sentence without a stop."""
    return SpliceError(ErrorCode.BAD_MODEL_FILE, f"{path}: {what}; {remedy}", param="model")


DOWNLOAD_AGAIN = "the file is damaged or incomplete: download it again"
"""Remedy for anything a sound file of its format cannot contain."""
