"""Rotary embedding tables, shared by layers."""

from __future__ import annotations

import torch

from engine.rope_spec import RopeSpec
from engine.rope_table import cos_sin_table


class RopeTables:
    """The tables of a model, one for all layers that turn alike."""

    def __init__(self, num_positions: int) -> None:
        self._num_positions = num_positions
        self._tables: dict[tuple[RopeSpec | None, int], torch.Tensor] = {}

    def table(self, rope: RopeSpec | None, head_dim: int) -> torch.Tensor:
        """See `cos_sin_table`."""
        key = (rope, head_dim)
        if key not in self._tables:
            self._tables[key] = torch.from_numpy(cos_sin_table(rope, head_dim, self._num_positions))
        return self._tables[key]
