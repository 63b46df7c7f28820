"""A safetensors file opened and checked.

Eight bytes give the length of a JSON header; the header and the tensors' bytes at the offsets it names follow
(https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.formats.bad_file import DOWNLOAD_AGAIN, bad_file
from engine.formats.mapped_file import MappedFile

MAX_HEADER_BYTES = 100_000_000
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    start: int
    """In the file, as `end`."""
    end: int


class SafetensorsFile:
    """Tensors by name."""

    def __init__(self, path: Path) -> None:
        """Raises SpliceError when the header is damaged or the file too short for a tensor it lists."""
        self.path = path
        try:
            self._file = MappedFile(path)
            self._entries = _entries(self._file)
            self._read: set[str] = set()
        except (OSError, ValueError, RecursionError) as error:
            raise bad_file(path, f"not readable as safetensors ({error})", DOWNLOAD_AGAIN) from error

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def dtype(self, name: str) -> str:
        """As the format spells it, for example `BF16`."""
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def bytes(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor as stored, row after row: a view of the mapped file."""
        entry = self._entries[name]
        self._read.add(name)
        return self._file.bytes[entry.start : entry.end]

    def unread(self) -> list[str]:
        """See `WeightSource.unread`."""
        return [name for name in self._entries if name not in self._read]

    def release(self) -> None:
        """See `WeightSource.release`."""
        self._file.release()


def _entries(file: MappedFile) -> dict[str, _Entry]:
    if len(file) < 8:
        raise ValueError(f"it has {len(file)} bytes, expected at least 8")
    length = int.from_bytes(file.bytes[:8].tobytes(), "little")
    begin = 8 + length
    if length > MAX_HEADER_BYTES or begin > len(file):
        raise ValueError(f"its header has {length} bytes, the file {len(file)}")
    header = json.loads(file.bytes[8:begin].tobytes())
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return {name: _entry(name, said, begin, len(file)) for name, said in header.items() if name != "__metadata__"}


def _entry(name: str, said: Any, begin: int, file_bytes: int) -> _Entry:
    try:
        dtype, shape, (start, end) = said["dtype"], said["shape"], said["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"tensor {name} is not described by dtype, shape and data_offsets") from None
    if not isinstance(dtype, str) or not isinstance(shape, list) or not all(_is_size(n) for n in (*shape, start, end)):
        raise ValueError(f"tensor {name} has dtype {dtype!r}, shape {shape!r} and offsets {start!r} to {end!r}")
    wanted = math.prod(shape) * _ITEM_BYTES.get(dtype, 0)
    if end < start or begin + end > file_bytes or (dtype in _ITEM_BYTES and end - start != wanted):
        raise ValueError(
            f"tensor {name} of shape {shape} and type {dtype} lies at {begin + start} to {begin + end} of a file of "
            f"{file_bytes} bytes"
        )
    return _Entry(dtype, tuple(shape), begin + start, begin + end)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
