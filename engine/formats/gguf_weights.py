"""Weights of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine.formats.gguf_file import GgufFile
from engine.formats.stored import Stored
from engine.weights import StoredMatrix

_KINDS = {"f32": "float32", "bf16": "bfloat16"}
"""Names of `StoredMatrix` that differ from ggml's."""
_ELEMENTS = {"float32": np.float32, "bfloat16": np.uint16}


class GgufWeights:
    """See `WeightSource`."""

    def __init__(self, file: GgufFile, locate: Callable[[str], Stored]) -> None:
        """`locate` says where the tensor of a canonical name lies."""
        self._file = file
        self._locate = locate

    def take(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """See `WeightSource.take`."""
        stored = self._locate(name)
        tensor = stored.picked(self._file.tensor(stored.name, stored.shape(shape), _index(stored)))
        return np.ascontiguousarray(tensor)

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> StoredMatrix:
        """See `WeightSource.take_matrix`."""
        stored = self._locate(name)
        kind = self._file.kind(stored.name)
        kind = _KINDS.get(kind, kind)
        if kind not in kinds or stored.is_transposed:
            return StoredMatrix("float32", shape, self.take(name, shape))
        rows = stored.picked(self._file.blocks(stored.name, stored.shape(shape), _index(stored)))
        element = _ELEMENTS.get(kind)
        if element is None:
            return StoredMatrix(kind, shape, rows)
        return StoredMatrix(kind, shape, np.ascontiguousarray(rows).view(element))

    def is_float32(self, name: str) -> bool:
        """See `WeightSource.is_float32`."""
        stored = self._locate(name).name
        return stored in self._file and self._file.kind(stored) == "f32"

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """See `WeightSource.expect`."""
        stored = self._locate(name)
        self._file.expect(stored.name, stored.shape(shape))

    def unread(self) -> list[str]:
        """See `WeightSource.unread`."""
        return self._file.unread()

    def release(self) -> None:
        """See `WeightSource.release`."""
        self._file.release()


def _index(stored: Stored) -> int | None:
    return None if stored.member is None else stored.member.index
