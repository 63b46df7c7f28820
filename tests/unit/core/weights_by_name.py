"""Weights drawn each from its name, so that two models are the same model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch


class WeightsByName:
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return (torch.randn(*shape, generator=generator) * 0.3).to(dtype or self._dtype)

    def take_matrix(self, name: str, shape: Sequence[int], kinds: frozenset[str]) -> torch.Tensor:
        return self.take(name, shape)
