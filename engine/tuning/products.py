"""Runners of `linear`: bfloat16 rows times a bfloat16 matrix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from engine.ops.cuda.gemm import TILES, GemmKernel, gemm
from engine.ops.cuda.library import Library
from engine.tuning.runner import Inputs, Runner, Tunable
from engine.tuning.shapes import Shape

OP = "linear"
FEW_ROWS = 64
"""Up to so many rows a product is bound by its matrix's bytes, and tile 0 is made for that."""
_AT_ONCE = 4096
"""Rows of a weight that are widened to float64 at a time."""
_TOLERANCE = 8e-3
"""Twice one rounding to bfloat16."""
_KERNELS: tuple[GemmKernel, ...] = ("gemm_sm90", "gemm_sm80")


def linear(library: Library | None, device: torch.device) -> Tunable:
    """Kernels that the library has, each tile by itself and the two as one that rows decide on, then torch.

    Tiles of a kernel give the same bits, so deciding by rows among them keeps rows; a tuner checks that before it
    believes it. What torch calls promises nothing.
    """
    ours: list[Runner] = []
    if library is not None:
        ours = [runner for kernel in _KERNELS if library.has(kernel) for runner in _of_kernel(library, kernel)]
    by_torch = Runner(f"torch-{torch.__version__}", False, torch.nn.functional.linear)
    return Tunable(OP, (*ours, by_torch), partial(_make, device), _rows_of, _exact, _moved_bytes, _TOLERANCE)


def _of_kernel(library: Library, kernel: GemmKernel) -> Iterator[Runner]:
    def by_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return gemm(library, x, weight, bias, kernel=kernel, tile=0 if x.shape[0] <= FEW_ROWS else 1)

    yield Runner(kernel, True, by_rows, _multiples_of_8)
    for tile in range(TILES[kernel]):
        yield Runner(f"{kernel}-{tile}", True, partial(gemm, library, kernel=kernel, tile=tile), _multiples_of_8)


def _multiples_of_8(shape: Shape, rows: int) -> str | None:
    del rows
    return None if shape.n % 8 == 0 and shape.k % 8 == 0 else "N and K are not both multiples of 8"


def _make(device: torch.device, shape: Shape, rows: int, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(rows, shape.k, generator=generator, device=device, dtype=torch.bfloat16)
    weight = torch.randn(shape.n, shape.k, generator=generator, device=device, dtype=torch.bfloat16)
    return x, weight / shape.k**0.5


def _rows_of(inputs: Inputs, places: slice) -> Inputs:
    x, weight = inputs
    return x[places], weight


def _exact(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    x, weight = inputs
    wide = x.double()
    return (torch.cat([wide @ part.double().t() for part in weight.split(_AT_ONCE)], dim=1),)


def _moved_bytes(shape: Shape, rows: int) -> int:
    return 2 * (rows * shape.k + shape.n * shape.k + rows * shape.n)
