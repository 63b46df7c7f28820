"""The checks every tensor of every format passes on its way into a layer."""

from __future__ import annotations

from pathlib import Path

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file


def missing_tensor(path: Path, name: str) -> Exception:
    return bad_file(path, f"tensor {name} is missing", DOWNLOAD_AGAIN)


def expect_shape(path: Path, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises SpliceError when the file's tensor is not the one its configuration describes."""
    if found != expected:
        raise bad_file(
            path,
            f"tensor {name} has shape {list(found)}, expected {list(expected)}",
            "the weights and the model's configuration do not belong together: use files of one model",
        )
