"""Weights of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.formats.gguf_file import GgufFile
from engine.formats.stored import Stored
from engine.ops.weight_matrix import QuantizedMatrix, WeightMatrix


class GgufWeights:
    """See `engine.layers.weights.Weights`."""

    def __init__(self, file: GgufFile, dtype: torch.dtype, locate: Callable[[str], Stored]) -> None:
        """`locate` says where the tensor of a canonical name lies."""
        self._file = file
        self._dtype = dtype
        self._locate = locate

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See `Weights.take`."""
        return self._tensor(self._locate(name), shape)

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> WeightMatrix:
        """See `Weights.take_matrix`."""
        stored = self._locate(name)
        if self._dtype != torch.float32 or self._file.kind(stored.name) not in kinds:
            return self._tensor(stored, shape)
        rows, columns = stored.shape(shape)
        blocks = self._file.blocks(stored.name, (rows, columns))
        if stored.pick is not None:
            blocks = blocks[stored.pick.contiguous() or stored.pick.rows]
        return QuantizedMatrix(self._file.kind(stored.name), shape, blocks)

    def _tensor(self, stored: Stored, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = self._file.tensor(stored.name, stored.shape(shape), self._dtype)
        return tensor if stored.pick is None else tensor[torch.from_numpy(stored.pick.rows)]
