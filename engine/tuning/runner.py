"""What a tuner can try: an operation, with inputs to try it on, and the runners that do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.tuning.shapes import Shape

Inputs = tuple[Any, ...]
"""An operation's arguments, tensors with a row a token first."""
Run = Callable[..., Any]
"""Takes `Inputs`, and those arguments of the operation that have defaults; returns a tensor, or a tuple of them."""


def serves_all(shape: Shape, rows: int) -> str | None:
    """Of a runner without limits."""
    del shape, rows
    return None


@dataclass(frozen=True, slots=True)
class Runner:
    """One implementation with its choices made: a kernel and its tile, a library's function.

    `keeps_rows` promises that a row's bits depend neither on how many stand beside it nor on its place among them; the
    tuner holds it to that. `refusal` says why it cannot do a shape with so many rows, None where it can. `tolerance` is
    for one that is known to be less exact than others of its operation; None: the operation's.
    """

    name: str
    keeps_rows: bool
    run: Run
    refusal: Callable[[Shape, int], str | None] = serves_all
    tolerance: float | None = None


@dataclass(frozen=True, slots=True)
class Tunable:
    """An operation and its runners, in order of preference: where nothing was measured the first that can is taken.

    `make(shape, rows, seed)` draws inputs; `rows_of(inputs, places)` gives those of some rows, in copies of their own
    where a runner writes; `exact(inputs)` is the result in float64, from which no runner may be farther than
    `tolerance`, as ‖found − exact‖ / ‖exact‖ by each output; `moved_bytes(shape, rows)` is what one call reads and
    writes.
    """

    op: str
    runners: tuple[Runner, ...]
    make: Callable[[Shape, int, int], Inputs]
    rows_of: Callable[[Inputs, slice], Inputs]
    exact: Callable[[Inputs], tuple[torch.Tensor, ...]]
    moved_bytes: Callable[[Shape, int], int]
    tolerance: float


def outputs_of(result: object) -> tuple[torch.Tensor, ...]:
    """What a runner returned. Raises TypeError where that is no tensor."""
    outputs = result if isinstance(result, tuple) else (result,)
    for output in outputs:
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"returned {type(output).__name__}, expected tensors")
    return outputs
