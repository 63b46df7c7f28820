"""Rotary embedding tables, shared by layers."""

from __future__ import annotations

import torch

from engine.rope_spec import RopeSpec
from engine.rope_table import cos_sin_table


class RopeTables:
    """The tables of a model, one for all layers that turn alike."""

    def __init__(self, num_positions: int, device: torch.device | None = None) -> None:
        """They lie on `device`, by default the CPU."""
        self._num_positions = num_positions
        self._device = device
        self._tables: dict[tuple[RopeSpec | None, int], torch.Tensor] = {}

    def table(self, rope: RopeSpec | None, head_dim: int) -> torch.Tensor:
        """See `cos_sin_table`."""
        key = (rope, head_dim)
        if key not in self._tables:
            table = torch.from_numpy(cos_sin_table(rope, head_dim, self._num_positions))
            self._tables[key] = table.to(self._device)
        return self._tables[key]
