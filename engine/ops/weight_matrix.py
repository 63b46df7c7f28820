"""A weight on its way from a file into an operation's own layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix as its file stores it."""

    kind: str
    """ggml's name in lower case, for example `q4_1`."""
    shape: tuple[int, int]
    """Rows and columns, in elements."""
    blocks: npt.NDArray[np.uint8]
    """`[rows, bytes of a row]`; perhaps a view of a mapped file, so to be packed at once and not kept."""


WeightMatrix = torch.Tensor | QuantizedMatrix
"""`[rows, columns]`."""
