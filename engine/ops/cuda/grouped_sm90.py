"""Products of each expert's rows with its own weights on Hopper: wgmma fed by TMA, through CUTLASS."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Literal

import torch

from engine.ops.cuda.cache import BF16
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import Permutation
from engine.ops.cuda.tensors import refuse, require
from wire.errors import ErrorCode, SpliceError

FEW_ROWS = 32
"""Of an expert: up to so many, tile 0 takes less time."""
TILES = 2
_ALIGN = 16
Sm90Kernel = Literal["grouped_sm90", "grouped_fp8", "grouped_fp8_blocks"]


class GroupedSm90(Structure):
    """`splice_cuda_grouped_sm90` of `csrc/cuda/splice_cuda.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "w", "x_scales", "w_scales", "counts", "offsets", "workspace")),
        *((name, c_int64) for name in ("num_experts", "n", "k")),
        ("tile", c_int32),
    )


@dataclass(frozen=True, slots=True)
class Scales:
    """Of e4m3 codes, float32, one a row."""

    x: torch.Tensor
    """`[rows]`."""
    weight: torch.Tensor
    """`[num_experts, N]`."""


def grouped_gemm_sm90(
    library: Library,
    x: torch.Tensor,
    weight: torch.Tensor,
    permutation: Permutation,
    scales: Scales | None = None,
    *,
    tile: int,
) -> torch.Tensor:
    """Row r of expert e of `x` `[rows, K]`, in the permutation's order, times the transposed `weight[e]` of
    `[num_experts, N, K]`: `[rows, N]` bfloat16. Hopper alone.

    Both are bfloat16 and K a multiple of 8 or, with `scales`, float8_e4m3fn and K a multiple of 16; N is a multiple of
    8. `tile` 0 is for few rows an expert, 1 for many. The workspace is allocated as torch allocates: in a graph it
    belongs to the graph.
    """
    kernel: Sm90Kernel = "grouped_sm90" if scales is None else "grouped_fp8"
    dtype = BF16 if scales is None else torch.float8_e4m3fn
    device, (experts, n, _) = library.device_type, weight.shape
    product, y = sm90_product(library, x, weight, dtype, permutation, tile)
    if scales is not None:
        product.x_scales = require("scales.x", scales.x, torch.float32, (permutation.rows,), device)
        product.w_scales = require("scales.weight", scales.weight, torch.float32, (experts, n), device, _ALIGN)
    if permutation.rows:
        workspace = workspace_for(library, kernel, experts, x.device)
        product.workspace = workspace.data_ptr()
        library.call(f"{kernel}_gemm", product)
    return y


def sm90_product(
    library: Library, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, permutation: Permutation, tile: int
) -> tuple[GroupedSm90, torch.Tensor]:
    """Arguments but for scales and workspace, and the result."""
    device, (experts, n, k) = library.device_type, weight.shape
    if not 0 <= tile < TILES:
        raise refuse("tile", tile, f"0 to {TILES - 1}")
    rows = require("x", x, dtype, (permutation.rows, k), device, _ALIGN)
    matrices = require("weight", weight, dtype, (permutation.counts.shape[0], n, k), device, _ALIGN)
    y = torch.empty(permutation.rows, n, dtype=BF16, device=x.device)
    product = GroupedSm90(
        y=y.data_ptr(), x=rows, w=matrices, counts=permutation.counts.data_ptr(),
        offsets=permutation.offsets.data_ptr(), num_experts=experts, n=n, k=k, tile=tile,
    )  # fmt: skip
    return product, y


def workspace_for(library: Library, kernel: Sm90Kernel, num_experts: int, device: torch.device) -> torch.Tensor:
    """Of a product on the current device, for the time until it was launched. Raises SpliceError where there is
    none."""
    return torch.empty(_workspace_bytes(library, kernel, num_experts), dtype=torch.uint8, device=device)


def _workspace_bytes(library: Library, kernel: Sm90Kernel, num_experts: int) -> int:
    """Of a product, on the current device."""
    function = library.function(f"{kernel}_workspace")
    function.restype = c_int64
    found = int(function(ctypes.c_int64(num_experts)))
    if found < 0:
        raise SpliceError(ErrorCode.INTERNAL_ERROR, "no CUDA device says how many multiprocessors it has")
    return found
