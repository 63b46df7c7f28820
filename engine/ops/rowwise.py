"""Element-wise functions whose bits depend on the value alone, not on where in a tensor it stands.

torch computes `exp` and its kin with vectors over the bulk of a flat tensor and one by one at its end, and the two
round differently. Products, sums and bounds are exact either way and need none of this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_VECTOR_ELEMENTS = 64
"""A multiple of what any instruction set's loop takes at once."""
_SERIAL_ELEMENTS = 32768
"""Up to this size (at::internal::GRAIN_SIZE) torch splits no element-wise loop among threads, each with an end."""


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """`x` float32 of any shape; same shape, contiguous."""
    return _by_vectors(torch.sigmoid, x)


def _by_vectors(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    flat = x.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % _VECTOR_ELEMENTS))
    out = torch.empty_like(padded)
    for first in range(0, len(padded), _SERIAL_ELEMENTS):
        out[first : first + _SERIAL_ELEMENTS] = function(padded[first : first + _SERIAL_ELEMENTS])
    return out[: len(flat)].view(x.shape)
