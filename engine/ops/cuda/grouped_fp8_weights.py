"""Products of each expert's rows, in bfloat16, with its own weights in e4m3 codes."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_void_p
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from engine.ops.cuda.fp8_reference import BLOCK, SCALINGS
from engine.ops.cuda.grouped_gemm import Grouped, grouped_arguments
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import Permutation
from engine.ops.cuda.tensors import refuse, require
from engine.spec import Activation

FP8_TILE_ROWS = (16, 64)
StackScaling = Literal["rows", "blocks"]
STACKED: tuple[StackScaling, ...] = get_args(StackScaling)


class GroupedCodes(Structure):
    """`splice_cuda_grouped_codes` of `csrc/cuda/splice_cuda.h`."""

    _fields_ = (("product", Grouped), ("w_scales", c_void_p), ("w_scaling", c_int32))


@dataclass(frozen=True, slots=True)
class Fp8Stack:
    """A matrix of every expert."""

    codes: torch.Tensor
    """float8_e4m3fn `[num_experts, N, K]`."""
    scales: torch.Tensor
    """float32: of rows `[num_experts, N]`, of blocks `[num_experts, ceil(N / 128), ceil(K / 128)]`; of a gate and an
    up one after another, `ceil(N / 2 / 128)` each."""
    scaling: StackScaling


def grouped_fp8_weights(
    library: Library,
    x: torch.Tensor,
    weight: Fp8Stack,
    permutation: Permutation,
    bias: torch.Tensor | None = None,
    *,
    gather: bool = False,
    activation: Activation | None = None,
) -> torch.Tensor:
    """As `grouped_gemm`, with K a multiple of 16 and tiles of 16 or 64 rows. Without a bias a row has the bits of
    `fp8.gemm_fp8_weights`."""
    experts, n, k = weight.codes.shape
    if permutation.tile_rows not in FP8_TILE_ROWS:
        raise refuse("permutation", f"in tiles of {permutation.tile_rows} rows", "16 or 64")
    if weight.scaling not in STACKED:
        raise refuse("weight", f"scaled by {weight.scaling}", "scales of rows or blocks")
    parts = 1 if activation is None else 2
    down = parts * -(-n // parts // BLOCK)
    shape = (experts, n) if weight.scaling == "rows" else (experts, down, -(-k // BLOCK))
    scales = require("scales", weight.scales, torch.float32, shape, library.device_type)
    product, y = grouped_arguments(
        library, x, weight.codes, torch.float8_e4m3fn, permutation, bias, gather=gather, activation=activation
    )
    library.call("grouped_fp8_weights", GroupedCodes(product, scales, SCALINGS.index(weight.scaling)))
    return y
