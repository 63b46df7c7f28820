"""FP8 products of a model that ask a table which runner to take."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.ops.cuda.fp8_products import Fp8Rows
from engine.ops.cuda.fp8_reference import Fp8Matrix
from engine.tuning.fp8_products import fp8_shape
from engine.tuning.runner import Runner
from engine.tuning.shapes import Shape


class TunedFp8:
    """See `fp8_products.Fp8Tactics`."""

    def __init__(self, ask: Callable[[Shape, int], Runner], note: Callable[[Shape], None]) -> None:
        """`ask` gives the runner of a shape with so many rows; `note` hears of the shapes there are."""
        self._ask, self._note = ask, note

    def note(self, weight: Fp8Matrix, rows: Fp8Rows) -> None:
        self._note(fp8_shape(weight, rows))

    def product(self, x: torch.Tensor | Fp8Matrix, weight: Fp8Matrix, bias: torch.Tensor | None) -> torch.Tensor:
        shape = fp8_shape(weight, "bfloat16" if isinstance(x, torch.Tensor) else "codes")
        y: torch.Tensor = self._ask(shape, len(x)).run(x, weight, bias)
        return y
