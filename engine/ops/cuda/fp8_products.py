"""Products with weights in e4m3 codes, as files or this process have quantised them.

On Hopper rows become codes too: under the scale that the file has for them, under one for each 128 elements where the
weight has scales of blocks, else under one a row; a norm or a gate before the product makes them where it can.
Elsewhere, and where asked for, rows stay bfloat16. A matrix decides which, never the number of rows. What no kernel
takes, or is no FP8, is multiplied as it is, in bfloat16.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import torch

from engine.ops.cuda.fp8 import Fp8Kernel, gated_mul_fp8, gemm_fp8, gemm_fp8_weights, quantise_rows, rms_norm_fp8
from engine.ops.cuda.fp8_reference import BLOCK, Fp8Matrix, Scaling, quantise_weight
from engine.ops.cuda.library import Library
from engine.ops.cuda.tensors import refuse
from engine.ops.signatures import LinearOp
from engine.ops.weight_matrix import WeightMatrix
from engine.spec import Activation

Fp8Rows = Literal["codes", "bfloat16"]
"""What a matrix meets."""
FP8_SCALINGS: dict[str, Scaling] = {"fp8_rows": "rows", "fp8_blocks": "blocks"}
"""Of kinds of `QuantizedMatrix`."""
FP8_KINDS = frozenset(FP8_SCALINGS)
_E4M3 = torch.float8_e4m3fn
_FEW_ROWS, _FEW, _MANY = 64, 0, 1
"""Up to so many rows a product takes the tile made for few; tiles by their numbers."""
_K_MULTIPLE, _N_MULTIPLE = 16, 8
MOST_K = 32768
"""Elements of a row that becomes codes."""
_HOPPER: tuple[Fp8Kernel, ...] = ("gemm_fp8_sm90", "gemm_fp8_blocks_sm90")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A matrix `[n, k]` on a device."""

    matrix: Fp8Matrix
    """Scales of rows or of blocks."""
    rows: Fp8Rows
    input_scale: float | None = None
    """Of the rows' codes, where the file has one."""
    row_scale: torch.Tensor | None = None
    """The same, `[1]` on the device."""

    @property
    def n(self) -> int:
        return self.matrix.codes.shape[0]


@dataclass(frozen=True, slots=True)
class Fp8Form:
    """How rows become codes."""

    scaling: Scaling
    input_scale: float | None = None
    scale: torch.Tensor | None = field(default=None, compare=False)
    """The same on the device."""


class ProductOfCodes(Protocol):
    def __call__(
        self, library: Library, x: Fp8Matrix, weight: Fp8Matrix, bias: torch.Tensor | None, *, tile: int
    ) -> torch.Tensor:
        """See `gemm_fp8`."""


class Fp8Tactics(Protocol):
    """Who chooses among kernels and tiles, having measured them."""

    def note(self, weight: Fp8Matrix, rows: Fp8Rows) -> None:
        """Such a matrix was loaded, and will meet such rows."""

    def product(self, x: torch.Tensor | Fp8Matrix, weight: Fp8Matrix, bias: torch.Tensor | None) -> torch.Tensor:
        """Of a matrix that was noted: see `gemm_fp8` and, of a tensor, `gemm_fp8_weights`."""


Fp8Run = Fp8Weight | torch.Tensor
"""Rows of a matrix that are multiplied together: codes, or bfloat16 `[n, k]`."""
Fp8Packed = tuple[Fp8Run, ...]


class Fp8Products:
    """The operation of `signatures.LinearOp` and its `PackOp`, on one library and device."""

    def __init__(
        self,
        library: Library,
        device: torch.device,
        linear: LinearOp,
        *,
        rows: Fp8Rows,
        quantises: bool = False,
        multiply: ProductOfCodes = gemm_fp8,
        tactics: Fp8Tactics | None = None,
    ) -> None:
        """`linear` multiplies plain tensors. `rows`: what matrices meet where there is a choice; `codes` is Hopper's
        alone. `quantises`: whether plain tensors become codes, a scale a row. `multiply` makes products of codes.
        `tactics` choose who multiplies codes; without them it is the tile made for so many rows."""
        self._library, self._device, self._linear = library, device, linear
        self._rows, self._quantises, self._multiply, self._tactics = rows, quantises, multiply, tactics
        has_choice = rows == "codes" and tactics is None
        self._tiles_agree = {kernel: has_choice and _tiles_agree(library, kernel, multiply) for kernel in _HOPPER}

    @property
    def name(self) -> str:
        """Of the arithmetic."""
        product = "cuda_fp8" if self._rows == "codes" else "cuda_fp8_weights"
        return f"{product}_quantised_here" if self._quantises else product

    def pack(self, *parts: WeightMatrix) -> Fp8Packed:
        """See `signatures.PackOp`: one matrix for each run of parts that are scaled alike and meet the same rows.
        Raises SpliceError for a quantised part of another kind."""
        runs: list[list[Fp8Run]] = []
        for part in map(self._prepared, parts):
            if runs and _continues(runs[-1][-1], part):
                runs[-1].append(part)
            else:
                runs.append([part])
        packed = tuple(map(_stacked, runs))
        for run in packed:
            if self._tactics is not None and isinstance(run, Fp8Weight):
                self._tactics.note(run.matrix, run.rows)
        return packed

    def form(self, weight: Fp8Packed) -> Fp8Form | None:
        """See `signatures.FusedRows`, as for the three that follow."""
        first = _form_of(weight[0])
        return first if all(_form_of(run) == first for run in weight) else None

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, form: Fp8Form) -> Fp8Matrix:
        return rms_norm_fp8(self._library, x, weight, eps, form.scaling, scale=form.scale)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, form: Fp8Form
    ) -> tuple[Fp8Matrix, torch.Tensor]:
        scale = form.scale
        return rms_norm_fp8(self._library, x, weight, eps, form.scaling, residual=residual, scale=scale), residual

    def gated_mul(self, gate_up: torch.Tensor, activation: Activation, form: Fp8Form) -> Fp8Matrix:
        return gated_mul_fp8(self._library, gate_up, activation, form.scaling, scale=form.scale)

    def linear(self, x: torch.Tensor | Fp8Matrix, weight: Fp8Packed, bias: torch.Tensor | None) -> torch.Tensor:
        """See `signatures.LinearOp`."""
        found, first = [], 0
        codes: dict[Fp8Form, Fp8Matrix] = {}
        for run in weight:
            columns = run.shape[0] if isinstance(run, torch.Tensor) else run.n
            own = None if bias is None else bias[first : first + columns]
            if own is not None and first % _N_MULTIPLE:
                own = own.clone()  # kernels take no address in the middle of 16 bytes
            first += columns
            form = _form_of(run)
            if isinstance(x, Fp8Matrix):
                assert isinstance(run, Fp8Weight)  # noqa: S101 - these rows are of the weight's form
                found.append(self._product(x, run.matrix, own))
            elif isinstance(run, torch.Tensor):
                found.append(self._linear(x, run, own))
            elif form is None:
                found.append(self._product(x, run.matrix, own))
            else:
                if form not in codes:
                    codes[form] = quantise_rows(self._library, x, form.scaling, form.scale)
                found.append(self._product(codes[form], run.matrix, own))
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _product(self, x: torch.Tensor | Fp8Matrix, weight: Fp8Matrix, bias: torch.Tensor | None) -> torch.Tensor:
        if self._tactics is not None:
            return self._tactics.product(x, weight, bias)
        few = len(x) <= _FEW_ROWS
        if isinstance(x, torch.Tensor):
            return gemm_fp8_weights(self._library, x, weight, bias, tile=_FEW if few else _MANY)
        few = few and self._tiles_agree[_kernel_of(weight)]
        return self._multiply(self._library, x, weight, bias, tile=_FEW if few else _MANY)

    def _prepared(self, part: WeightMatrix) -> Fp8Run:
        matrix = on_device(part, self._device, quantises=self._quantises)
        if isinstance(matrix, torch.Tensor):
            return matrix
        scale = None if isinstance(part, torch.Tensor) else part.input_scale
        rows = self._rows_of(matrix.scaling, part.shape[1])
        if rows == "bfloat16" or scale is None:
            return Fp8Weight(matrix, rows)
        return Fp8Weight(matrix, rows, scale, torch.tensor([scale], dtype=torch.float32, device=self._device))

    def _rows_of(self, scaling: Scaling, k: int) -> Fp8Rows:
        """What a matrix meets, whose rows have k elements."""
        fits = k <= MOST_K and (scaling != "blocks" or k % BLOCK == 0)
        return self._rows if fits else "bfloat16"


def on_device(part: WeightMatrix, device: torch.device, *, quantises: bool) -> Fp8Matrix | torch.Tensor:
    """A matrix as products take it: codes and scales of rows or blocks, or bfloat16 where it is that, and does not
    become codes (`quantises`), or where no kernel takes its sizes. Raises SpliceError for a quantised one of another
    kind."""
    n, k = part.shape
    fits = n % _N_MULTIPLE == 0 and k % _K_MULTIPLE == 0
    if isinstance(part, torch.Tensor):
        return quantise_weight(part, "rows") if quantises and fits else part
    if part.kind not in FP8_SCALINGS or part.scales is None:
        raise refuse("part", f"of kind {part.kind}", " or ".join(sorted(FP8_SCALINGS)))
    codes = torch.from_numpy(np.array(part.blocks, order="C")).to(device).view(_E4M3)
    scales = torch.from_numpy(np.array(part.scales, dtype=np.float32)).to(device)
    matrix = Fp8Matrix(codes, scales, FP8_SCALINGS[part.kind])
    return matrix if fits else in_bfloat16(matrix)


def rows_that_codes_meet(library: Library, capability: tuple[int, int], *, wants_bfloat16: bool) -> Fp8Rows:
    """On a GPU of this compute capability, with what was built."""
    has_both = capability[0] == 9 and all(map(library.has, _HOPPER))
    return "codes" if has_both and not wants_bfloat16 else "bfloat16"


def in_bfloat16(matrix: Fp8Matrix) -> torch.Tensor:
    """What a quantised weight stands for: code · scale in float32, rounded."""
    wide, scales = matrix.codes.float(), matrix.scales
    if matrix.scaling == "blocks":
        scales = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: wide.shape[0], : wide.shape[1]]
    else:
        scales = scales[:, None]
    return wide.mul_(scales).bfloat16()


def _form_of(run: Fp8Run) -> Fp8Form | None:
    """None for what meets bfloat16."""
    if isinstance(run, torch.Tensor) or run.rows == "bfloat16":
        return None
    if run.row_scale is None:
        return Fp8Form(run.matrix.scaling)
    return Fp8Form("tensor", run.input_scale, run.row_scale)


def _continues(before: Fp8Run, part: Fp8Run) -> bool:
    """Whether both can be one matrix: scales of blocks go on where a block ends."""
    if isinstance(before, torch.Tensor) or isinstance(part, torch.Tensor):
        return isinstance(before, torch.Tensor) and isinstance(part, torch.Tensor)
    alike = (before.matrix.scaling, before.rows, before.input_scale) == (
        part.matrix.scaling,
        part.rows,
        part.input_scale,
    )
    return alike and (part.matrix.scaling == "rows" or before.n % BLOCK == 0)


def _stacked(run: list[Fp8Run]) -> Fp8Run:
    plain = [part for part in run if isinstance(part, torch.Tensor)]
    weights = [part for part in run if not isinstance(part, torch.Tensor)]
    if len(run) == 1:
        return run[0]
    if plain:
        return torch.cat(plain)
    codes = torch.cat([part.matrix.codes.view(torch.uint8) for part in weights]).view(_E4M3)
    scales = torch.cat([part.matrix.scales for part in weights])
    return replace(weights[0], matrix=Fp8Matrix(codes, scales, weights[0].matrix.scaling))


def _kernel_of(weight: Fp8Matrix) -> Fp8Kernel:
    return _HOPPER[weight.scaling == "blocks"]


def _tiles_agree(library: Library, kernel: Fp8Kernel, multiply: ProductOfCodes) -> bool:
    """As `candidates` asks it of products in bfloat16: whether this GPU gives a row the same bits through either."""
    scaling: Scaling = "blocks" if kernel == "gemm_fp8_blocks_sm90" else "rows"
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(size, 1024, generator=generator).bfloat16() for size in (_FEW_ROWS, 256))
    rows = quantise_rows(library, x.to(library.device_type), scaling)
    matrix = quantise_weight(weight.to(library.device_type), scaling)
    few, many = (multiply(library, rows, matrix, None, tile=tile) for tile in (_FEW, _MANY))
    agree = torch.equal(few, many)
    if not agree:
        _log.warning("%s: tiles round differently here; all rows take the tile for many, which is slower", kernel)
    return agree
