"""Runners of products with weights in e4m3 codes: of rows that are codes too, and of rows in bfloat16.

An operation for each way in which they are scaled: kernels differ, or what they do with scales does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from engine.ops.cuda.fp8 import FP8_TILES, Fp8Kernel, gemm_fp8, gemm_fp8_weights
from engine.ops.cuda.fp8_products import Fp8Rows, ProductOfCodes
from engine.ops.cuda.fp8_reference import (
    BLOCK,
    Fp8Matrix,
    Scaling,
    activation_values,
    empty_block_scales,
    quantise_rows,
    quantise_weight,
    weight_values,
)
from engine.ops.cuda.library import Library
from engine.tuning.products import FEW_ROWS
from engine.tuning.runner import Inputs, Run, Runner, Tunable
from engine.tuning.shapes import Shape

_AT_ONCE = 4096
"""Rows of a weight, whole blocks, that are widened to float64 at a time."""
_TOLERANCE, _IN_MATRIX_UNITS = 8e-3, 3.4e-2
"""Twice one rounding to bfloat16; and what sums may differ that never leave the matrix units, up to 2 % of the largest
(DeepSeek-V3, arXiv 2412.19437, section 3.3.2)."""
_FAST = (2, 3)
"""Tiles of `gemm_fp8_sm90` that sum there: one arithmetic, and another than that of tiles 0 and 1."""
_FULL_GRID = 132 * 128 * 256
"""Outputs that keep every multiprocessor of an H200 at work on a tile of 128×256."""
_TORCH_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Fp8Operation:
    """What weights and rows are."""

    op: str
    rows: Fp8Rows
    scaling: Scaling
    """Of weights; rows that are codes have blocks where these have, else scales of rows or one."""


FP8_OPERATIONS = (
    Fp8Operation("fp8_codes", "codes", "rows"),
    Fp8Operation("fp8_block_codes", "codes", "blocks"),
    Fp8Operation("fp8_weights", "bfloat16", "rows"),
    Fp8Operation("fp8_block_weights", "bfloat16", "blocks"),
)


def fp8_shape(weight: Fp8Matrix, rows: Fp8Rows) -> Shape:
    """Of a product of such a weight with such rows."""
    has_blocks = weight.scaling == "blocks"
    [op] = (one.op for one in FP8_OPERATIONS if one.rows == rows and (one.scaling == "blocks") == has_blocks)
    return Shape(op, *weight.codes.shape)


def fp8_tunables(
    library: Library | None, device: torch.device, multiply: ProductOfCodes = gemm_fp8
) -> tuple[Tunable, ...]:
    """Those of which there is a runner: kernels that the library has, each tile by itself and those of one arithmetic
    as one that rows decide on; torch for codes, where it is given a GPU. `multiply` makes our products of codes."""
    found = (_tunable(each, library, device, multiply) for each in FP8_OPERATIONS)
    return tuple(each for each in found if each.runners)


def _tunable(
    operation: Fp8Operation, library: Library | None, device: torch.device, multiply: ProductOfCodes
) -> Tunable:
    has_blocks = operation.scaling == "blocks"
    runners: list[Runner] = []
    if library is not None:
        runners += _ours(operation, library, multiply)
    if operation.rows == "codes" and device.type == "cuda":
        runners += _of_torch(has_blocks=has_blocks)
    make = partial(_make, device, operation)
    return Tunable(operation.op, tuple(runners), make, _rows_of, _exact, partial(_moved_bytes, operation), _TOLERANCE)


def _ours(operation: Fp8Operation, library: Library, multiply: ProductOfCodes) -> Iterator[Runner]:
    kernel: Fp8Kernel = "gemm_fp8_weights"
    run: Callable[..., torch.Tensor] = gemm_fp8_weights
    if operation.rows == "codes":
        kernel, run = ("gemm_fp8_blocks_sm90" if operation.scaling == "blocks" else "gemm_fp8_sm90"), multiply
    if not library.has(kernel):
        return
    refusal = _whole_blocks if operation.rows == "codes" and operation.scaling == "blocks" else _multiples

    def taking(tile_of: Callable[[int, int], int]) -> Run:
        def product(x: torch.Tensor | Fp8Matrix, weight: Fp8Matrix, bias: torch.Tensor | None = None) -> torch.Tensor:
            return run(library, x, weight, bias, tile=tile_of(len(x), len(weight)))

        return product

    yield Runner(kernel, True, taking(lambda rows, _: 0 if rows <= FEW_ROWS else 1), refusal)
    if kernel == "gemm_fp8_sm90":
        fast = taking(lambda rows, columns: 3 if rows * columns < _FULL_GRID else 2)
        yield Runner(f"{kernel}-fast", True, fast, refusal, _IN_MATRIX_UNITS)
    for tile in range(FP8_TILES[kernel]):
        tolerance = _IN_MATRIX_UNITS if tile in _FAST else None
        yield Runner(f"{kernel}-{tile}", True, taking(lambda *_, own=tile: own), refusal, tolerance)


def _of_torch(*, has_blocks: bool) -> Iterator[Runner]:
    """What torch calls promises nothing of rows. Its fast sums are those of our tiles 2 and 3."""
    name = f"torch-{torch.__version__}"
    if has_blocks:
        yield Runner(name, False, _blocks_by_torch, _whole_blocks_of_torch)
        return
    yield Runner(name, False, partial(rows_by_torch, False), _multiples_of_torch)
    yield Runner(f"{name}-fast", False, partial(rows_by_torch, True), _multiples_of_torch, _IN_MATRIX_UNITS)


def rows_by_torch(is_fast: bool, x: Fp8Matrix, weight: Fp8Matrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x` with scales of rows or one; torch takes either of both operands alone. `is_fast`: sums stay in the matrix
    units."""
    of_x, of_weight = (one.scales.view(-1, 1).expand(len(one), 1).contiguous() for one in (x, weight))
    return torch._scaled_mm(
        x.codes, weight.codes.t(), of_x, of_weight.t(), bias=bias, out_dtype=torch.bfloat16, use_fast_accum=is_fast
    )


def _blocks_by_torch(x: Fp8Matrix, weight: Fp8Matrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    scales = x.scales.t(), weight.scales.t()
    y = torch._scaled_mm(x.codes, weight.codes.t(), *scales, out_dtype=torch.bfloat16)
    return y if bias is None else y.add_(bias)


def _multiples(shape: Shape, rows: int) -> str | None:
    del rows
    return None if shape.n % 8 == 0 and shape.k % 16 == 0 else "N is no multiple of 8, or K none of 16"


def _whole_blocks(shape: Shape, rows: int) -> str | None:
    del rows
    return None if shape.n % 8 == 0 and shape.k % BLOCK == 0 else f"N is no multiple of 8, or K none of {BLOCK}"


def _multiples_of_torch(shape: Shape, rows: int) -> str | None:
    del rows
    return None if shape.n % _TORCH_MULTIPLE == shape.k % _TORCH_MULTIPLE == 0 else "N and K are not multiples of 16"


def _whole_blocks_of_torch(shape: Shape, rows: int) -> str | None:
    """cuBLAS reads scales by fours, along rows of x and along k of a weight."""
    if shape.n % _TORCH_MULTIPLE or shape.k % (4 * BLOCK):
        return f"N is no multiple of {_TORCH_MULTIPLE}, or K none of {4 * BLOCK}"
    return None if rows % 4 == 0 else "rows are no multiple of 4"


def _make(device: torch.device, operation: Fp8Operation, shape: Shape, rows: int, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(rows, shape.k, generator=generator, device=device, dtype=torch.bfloat16)
    weight = torch.randn(shape.n, shape.k, generator=generator, device=device, dtype=torch.bfloat16)
    coded = quantise_weight(weight.div_(shape.k**0.5), operation.scaling)
    return (quantise_rows(x, operation.scaling) if operation.rows == "codes" else x), coded


def _rows_of(inputs: Inputs, places: slice) -> Inputs:
    """Scales of blocks in a copy: kernels read them at multiples of 16 bytes."""
    x, weight = inputs
    if isinstance(x, torch.Tensor):
        return x[places], weight
    if x.scaling != "blocks":
        return Fp8Matrix(x.codes[places], x.scales[places], x.scaling), weight
    codes = x.codes[places]
    scales = empty_block_scales(codes.shape[0], codes.shape[1], codes.device)
    return Fp8Matrix(codes, scales.copy_(x.scales[:, places]), x.scaling), weight


def _exact(inputs: Inputs) -> tuple[torch.Tensor, ...]:
    x, weight = inputs
    wide = x.double() if isinstance(x, torch.Tensor) else activation_values(x)
    step = _AT_ONCE // BLOCK if weight.scaling == "blocks" else _AT_ONCE
    parts = zip(weight.codes.split(_AT_ONCE), weight.scales.split(step), strict=True)
    return (torch.cat([wide @ weight_values(Fp8Matrix(*part, weight.scaling)).t() for part in parts], dim=1),)


def _moved_bytes(operation: Fp8Operation, shape: Shape, rows: int) -> int:
    of_x = 1 if operation.rows == "codes" else 2
    return of_x * rows * shape.k + shape.n * shape.k + 2 * rows * shape.n
