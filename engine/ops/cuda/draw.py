"""Tokens from logits that stay on the device: the ones `engine.sampler` draws from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.ops.cuda.library import Library
from engine.ops.cuda.structs import Draws
from engine.ops.cuda.tensors import require, require_rows

MAX_TOKENS = 1 << 19
COLUMNS = 7
"""Numbers a draw depends on, eight bytes each."""


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
    """`[COLUMNS, len(choices)]` int64 on the CPU, the columns of the C structure: for one copy to the device."""
    reals = [[float(getattr(one, name)) for one in choices] for name in ("temperature", "min_p", "top_p")]
    wholes = [[_signed(getattr(one, name)) for one in choices] for name in ("top_k", "seed", "choice", "position")]
    bits = torch.tensor(reals, dtype=torch.float64).view(torch.int64)
    return torch.cat((bits, torch.tensor(wholes, dtype=torch.int64)))


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
