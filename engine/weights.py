"""Weights on their way from a file into a model, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FLOAT_KINDS = frozenset({"float32", "bfloat16"})


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix in one of the forms that operations multiply; perhaps a view of a mapped file, so to be packed at once
    and not kept."""

    kind: str
    """`float32`, `bfloat16`, `fp8_rows`, `fp8_blocks`, or ggml's name of a quantised type in lower case, for example
    `q4_1`."""
    shape: tuple[int, int]
    """Rows and columns, in elements."""
    data: npt.NDArray[Any]
    """float32 `[rows, columns]`; bfloat16 the same as uint16, numpy having no such type; else uint8
    `[rows, bytes of a row]` as the file has them."""
    scales: npt.NDArray[np.float32] | None = None
    """What e4m3 codes are multiplied with: `fp8_rows` `[rows]`, `fp8_blocks` `[ceil(rows / 128), ceil(columns / 128)]`.
    None for kinds that hold their own."""
    input_scale: float | None = None
    """Of the codes that the file wants the rows to become which FP8 codes meet; None: a scale for each, as it comes."""


class WeightSource(Protocol):
    """Tensors of one model under the canonical names of `engine.layers.weights.Weights`."""

    def take(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """The tensor's values, contiguous, widened or dequantised if need be. To be copied by who keeps it.

        Raises SpliceError (bad_model_file), naming file, tensor and remedy, when it is missing, has another shape or
        an unreadable type.
        """

    def take_matrix(self, name: str, shape: tuple[int, int], kinds: frozenset[str]) -> StoredMatrix:
        """The matrix as the file has it if that is one of `kinds`, else in float32. Raises as `take`."""

    def is_float32(self, name: str) -> bool:
        """Whether the file has the tensor in float32, from the headers alone; False too for one it does not have."""

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises what `take` would, from the headers alone."""

    def unread(self) -> list[str]:
        """Names in the file of tensors that nobody has taken any part of."""

    def release(self) -> None:
        """What was taken so far is not looked at any more: pages of a mapped file need not stay in memory."""


def widened(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16, as its bits, to float32; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
