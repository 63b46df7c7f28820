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
    """ggml's name in lower case, for example `q4_1`, or `fp8_rows` or `fp8_blocks`."""
    shape: tuple[int, int]
    """Rows and columns, in elements."""
    blocks: npt.NDArray[np.uint8]
    """`[rows, bytes of a row]`; perhaps a view of a mapped file, so to be packed at once and not kept."""
    scales: npt.NDArray[np.float32] | None = None
    """See `StoredMatrix`, as for `input_scale`."""
    input_scale: float | None = None


WeightMatrix = torch.Tensor | QuantizedMatrix
"""`[rows, columns]`."""


@dataclass(frozen=True, slots=True)
class ExpertMatrices:
    """The gated MLP of one expert of a mixture; biases in the model's dtype, both or none."""

    gate: WeightMatrix
    """`[intermediate, hidden]`, as `up`."""
    up: WeightMatrix
    down: WeightMatrix
    """`[hidden, intermediate]`."""
    gate_up_bias: torch.Tensor | None = None
    """`[2 * intermediate]`, the gate's first."""
    down_bias: torch.Tensor | None = None
    """`[hidden]`."""


def stacked(*parts: WeightMatrix) -> torch.Tensor:
    """`PackOp` of operations that take plain tensors."""
    plain: list[torch.Tensor] = []
    for part in parts:
        if not isinstance(part, torch.Tensor):
            raise TypeError(f"a {part.kind} weight reached an operation that takes plain tensors only")
        plain.append(part)
    return plain[0] if len(plain) == 1 else torch.cat(plain)
