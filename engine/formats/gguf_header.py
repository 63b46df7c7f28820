"""A GGUF file's header: key-value pairs and where each tensor lies.

The `gguf` package reads it too, through one numpy view for every string: seconds for a tokenizer of 50,000 tokens,
which this does in a fraction of one. Format: the GGUF specification of ggml, versions 2 and 3, little endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SIZE = struct.Struct("<Q")
_MAX_DEPTH = 4
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    kind: int
    """A `gguf.GGMLQuantizationType`."""
    shape: tuple[int, ...]
    """Rows first, as torch has it; GGUF writes the fastest axis first."""
    offset: int
    """Of the first byte, in the file."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    pairs: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(data: memoryview) -> GgufHeader:
    """The header of a whole file's bytes; raises ValueError with what is wrong for anything that is not sound GGUF."""
    if bytes(data[:4]) != _MAGIC:
        raise ValueError("it does not begin with the GGUF magic")
    cursor = _Cursor(data, len(_MAGIC))
    version = cursor.scalar("I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}, expected one of {', '.join(map(str, _VERSIONS))}")
    num_tensors, num_pairs = cursor.scalar("Q"), cursor.scalar("Q")
    pairs: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = cursor.string()
        if key in pairs:
            raise ValueError(f"field {key!r} occurs twice")
        pairs[key] = cursor.value(cursor.scalar("I"))
    tensors: dict[str, TensorInfo] = {}
    for _ in range(num_tensors):
        name, info = cursor.tensor_info()
        if name in tensors:
            raise ValueError(f"tensor {name} occurs twice")
        tensors[name] = info
    alignment = pairs.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"field 'general.alignment' is {alignment!r}, expected a positive integer")
    start = -(-cursor.offset // alignment) * alignment
    placed = {name: TensorInfo(info.kind, info.shape, start + info.offset) for name, info in tensors.items()}
    return GgufHeader(pairs, placed)


class _Cursor:
    """Reads forward; every read past the end raises ValueError."""

    def __init__(self, data: memoryview, offset: int) -> None:
        self._data = data
        self.offset = offset

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            if depth == _MAX_DEPTH:
                raise ValueError(f"arrays nested deeper than {_MAX_DEPTH}")
            return self._array(depth)
        return self.scalar(self._code(kind))

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return str(self._take(self.scalar("Q")), "utf-8")

    def tensor_info(self) -> tuple[str, TensorInfo]:
        """(name, info); the offset counts from the beginning of the data section."""
        name, dimensions = self.string(), self.scalar("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions, expected at most {_MAX_DIMENSIONS}")
        sizes = [self.scalar("Q") for _ in range(dimensions)]
        return name, TensorInfo(kind=self.scalar("I"), shape=tuple(reversed(sizes)), offset=self.scalar("Q"))

    def _array(self, depth: int) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            return self._strings(count)
        if kind == _ARRAY:
            return [self.value(kind, depth + 1) for _ in range(count)]
        code = self._code(kind)
        raw = self._take(count * struct.calcsize("<" + code))
        return [item[0] for item in struct.iter_unpack("<" + code, raw)]

    def _strings(self, count: int) -> list[str]:
        """A tokenizer has a hundred thousand of them: read without a call for each."""
        data, offset, size_at = self._data, self.offset, _SIZE.unpack_from
        found = []
        try:
            for _ in range(count):
                start = offset + _SIZE.size
                offset = start + size_at(data, offset)[0]
                found.append(str(data[start:offset], "utf-8"))
        except struct.error:
            offset = len(data) + 1
        self._take(offset - self.offset)  # raises where the last of them ends behind the file
        return found

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"unknown value type {kind} at byte {self.offset}")
        return _SCALARS[kind]

    def _take(self, size: int) -> memoryview:
        end = self.offset + size
        if end > len(self._data):
            raise ValueError(f"it ends at byte {len(self._data)} inside its header, at least {end} expected")
        part = self._data[self.offset : end]
        self.offset = end
        return part
