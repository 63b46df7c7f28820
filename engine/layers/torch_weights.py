"""Weights of a file as the tensors that layers take."""

from __future__ import annotations

import numpy as np
import torch

from engine.ops.weight_matrix import QuantizedMatrix, WeightMatrix
from engine.weights import FLOAT_KINDS, StoredMatrix, WeightSource


class TorchWeights:
    """See `engine.layers.weights.Weights`. Tensors are copies: a file may be replaced under its mapping."""

    def __init__(
        self,
        source: WeightSource,
        dtype: torch.dtype,
        device: torch.device | None = None,
        *,
        keeps_quantised: bool | None = None,
    ) -> None:
        """`device` of the tensors, by default the CPU. `keeps_quantised`: whether matrices stay as they are quantised
        where the operation takes them, by default if `dtype` is float32, which holds their values exactly."""
        self._source = source
        self._dtype = dtype
        self._device = device
        self._keeps_quantised = dtype == torch.float32 if keeps_quantised is None else keeps_quantised

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """See `Weights.take`."""
        tensor = torch.from_numpy(np.array(self._source.take(name, shape)))
        return tensor.to(self._device, dtype or self._dtype)

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> WeightMatrix:
        """See `Weights.take_matrix`."""
        wanted = kinds - FLOAT_KINDS if self._keeps_quantised else frozenset[str]()
        if self._dtype == torch.bfloat16:
            wanted |= {"bfloat16"}
        matrix = self._source.take_matrix(name, shape, wanted)
        if matrix.kind in FLOAT_KINDS:
            return _tensor(matrix).to(self._device, self._dtype)
        return QuantizedMatrix(matrix.kind, matrix.shape, matrix.data, matrix.scales, matrix.input_scale)


def _tensor(matrix: StoredMatrix) -> torch.Tensor:
    if matrix.kind == "bfloat16":
        return torch.from_numpy(np.array(matrix.data).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(matrix.data))
