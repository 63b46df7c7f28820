"""Products of each expert's rows with its own weights on Hopper: wgmma fed by TMA, through CUTLASS."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int32, c_int64, c_void_p

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


class GroupedSm90(Structure):
    """`splice_cuda_grouped_sm90` of `csrc/cuda/splice_cuda.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "w", "counts", "offsets", "workspace")),
        *((name, c_int64) for name in ("num_experts", "n", "k")),
        ("tile", c_int32),
    )


def workspace_bytes(library: Library, num_experts: int) -> int:
    """Of a product, on the current device. Raises SpliceError where it cannot be asked."""
    function = library.function("grouped_sm90_workspace")
    function.restype = c_int64
    found = int(function(ctypes.c_int64(num_experts)))
    if found < 0:
        raise SpliceError(ErrorCode.INTERNAL_ERROR, "no CUDA device says how many multiprocessors it has")
    return found


def grouped_gemm_sm90(
    library: Library,
    x: torch.Tensor,
    weight: torch.Tensor,
    permutation: Permutation,
    *,
    tile: int,
    workspace: torch.Tensor | None = None,
) -> torch.Tensor:
    """Row r of expert e of `x` `[rows, K]`, in the permutation's order, times the transposed `weight[e]` of
    `[num_experts, N, K]`: `[rows, N]`. K and N are multiples of 8. `tile` 0 is for few rows an expert, 1 for many;
    `workspace` uint8 of `workspace_bytes`, free again after the call. Hopper alone.
    """
    device, (experts, n, k) = library.device_type, weight.shape
    if not 0 <= tile < TILES:
        raise refuse("tile", tile, f"0 to {TILES - 1}")
    rows = require("x", x, BF16, (permutation.rows, k), device, _ALIGN)
    matrices = require("weight", weight, BF16, (permutation.counts.shape[0], n, k), device, _ALIGN)
    needed = workspace_bytes(library, experts)
    if workspace is None:
        workspace = torch.empty(needed, dtype=torch.uint8, device=x.device)
    room = require("workspace", workspace, torch.uint8, (None,), device, 256)
    if workspace.numel() < needed:
        raise refuse("workspace", f"{workspace.numel()} bytes", f"{needed} at least")
    y = torch.empty(permutation.rows, n, dtype=BF16, device=x.device)
    arguments = GroupedSm90(
        y=y.data_ptr(), x=rows, w=matrices, counts=permutation.counts.data_ptr(),
        offsets=permutation.offsets.data_ptr(), workspace=room, num_experts=experts, n=n, k=k, tile=tile,
    )  # fmt: skip
    library.call("grouped_sm90_gemm", arguments)
    return y
