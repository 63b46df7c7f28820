"""Tokens from logits that stay on the device: the ones `engine.sampler` draws from the same numbers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.ops.cuda.library import Library
from engine.ops.cuda.structs import Draws
from engine.ops.cuda.tensors import require, require_rows

MAX_TOKENS = 1 << 19
COLUMNS = 7
"""Numbers a draw depends on, eight bytes each, its position the last."""
_PACKED = struct.Struct("=3d3q")


@dataclass(frozen=True, slots=True)
class DrawChoice:
    """What the token of one row depends on beside its logits; see docs/sampling.md. `top_k` 0, `top_p` 1 and `min_p` 0
    filter nothing, a temperature of 0 is greedy."""

    temperature: float
    seed: int
    position: int
    choice: int = 0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def draw_tokens(library: Library, logits: torch.Tensor, choices: Sequence[DrawChoice]) -> torch.Tensor:
    """`[len(choices)]` int64 on the device; −1 for a row with NaN or without a finite largest logit.

    `logits` `[len(choices), vocab]` float32, vocab at most 524288.
    """
    return draw_on_device(library, logits, draw_columns(choices).to(logits.device))


def draw_columns(choices: Sequence[DrawChoice]) -> torch.Tensor:
    """`[COLUMNS, len(choices)]` int64 on the CPU: see `fill_columns`."""
    columns = np.empty((COLUMNS, len(choices)), dtype=np.int64)
    fill_columns(columns, list(map(packed, choices)), [one.position for one in choices])
    return torch.from_numpy(columns)


def packed(choice: DrawChoice) -> bytes:
    """All of it but the position: what is the same in every draw of a request."""
    reals = float(choice.temperature), float(choice.min_p), float(choice.top_p)
    return _PACKED.pack(*reals, *map(_signed, (choice.top_k, choice.seed, choice.choice)))


def fill_columns(columns: npt.NDArray[np.int64], rows: Sequence[bytes], positions: Sequence[int]) -> None:
    """Writes the columns of the C structure, `[COLUMNS, len(rows)]`, of rows that are `packed`: for one copy to the
    device."""
    columns[:-1] = np.frombuffer(b"".join(rows), dtype=np.int64).reshape(len(rows), COLUMNS - 1).T
    columns[-1] = positions


def draw_on_device(
    library: Library, logits: torch.Tensor, columns: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """As `draw_tokens`, with what `draw_columns` made, on the device; into `out` `[rows]` int64 where it is given."""
    rows, device = columns.shape[1], library.device_type
    address, stride = require_rows("logits", logits, torch.float32, (rows, None), device)
    first = require("columns", columns, torch.int64, (COLUMNS, rows), device)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device) if out is None else out
    to = require("out", tokens, torch.int64, (rows,), device)
    places = [first + 8 * rows * column for column in range(COLUMNS)]
    library.call("draw", Draws(address, rows, logits.shape[1], stride, *places, to))
    return tokens


def _signed(number: int) -> int:
    """The same 64 bits as torch's signed integers have them."""
    bits = number & 0xFFFF_FFFF_FFFF_FFFF
    return bits - (1 << 64) if bits >> 63 else bits
