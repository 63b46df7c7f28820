"""Products of each expert's rows with its own weights: bfloat16, float32 sums, one chain over k per output."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p

import torch

from engine.ops.cuda.cache import BF16
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import Permutation
from engine.ops.cuda.rows import ACTIVATIONS
from engine.ops.cuda.tensors import refuse, require, require_rows
from engine.spec import Activation

TILE_ROWS = (16, 64, 128)
_ALIGN = 16


class Grouped(Structure):
    """`splice_cuda_grouped` of `csrc/cuda/splice_cuda.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "w", "bias", "sources", "tiles", "tile_count")),
        *((name, c_int64) for name in ("n", "k", "x_stride", "max_tiles")),
        *((name, c_int32) for name in ("tile_rows", "activation")),
    )


def grouped_gemm(
    library: Library,
    x: torch.Tensor,
    weight: torch.Tensor,
    permutation: Permutation,
    bias: torch.Tensor | None = None,
    *,
    gather: bool = False,
    activation: Activation | None = None,
) -> torch.Tensor:
    """Row r of expert e times the transposed `weight[e]` of `[num_experts, N, K]`, plus `bias[e]` of `[num_experts,
    N]`: `[rows, N]`, or with an `activation` `[rows, N / 2]`, its halves gated as `gated_mul` does it.

    `x` `[rows, K]` in the permutation's order or, to `gather`, `[M, K]` in that of tokens, rows perhaps strided. Rows
    that no choice fills are not written. The permutation's tiles have 16, 64 or 128 rows: no bit depends on it.
    """
    arguments, y = grouped_arguments(library, x, weight, BF16, permutation, bias, gather=gather, activation=activation)
    library.call("grouped_gemm", arguments)
    return y


def grouped_arguments(
    library: Library,
    x: torch.Tensor,
    weight: torch.Tensor,
    dtype: torch.dtype,
    permutation: Permutation,
    bias: torch.Tensor | None,
    *,
    gather: bool,
    activation: Activation | None,
) -> tuple[Grouped, torch.Tensor]:
    """What `grouped_gemm` passes on for a `weight` of this dtype, and its result."""
    device, (experts, n, k) = library.device_type, weight.shape
    if permutation.tile_rows not in TILE_ROWS:
        raise refuse("permutation", f"in tiles of {permutation.tile_rows} rows", "16, 64 or 128")
    if activation is not None and activation not in ACTIVATIONS:
        raise refuse("activation", repr(activation), f"one of {', '.join(ACTIVATIONS)}")
    source = permutation.places.shape[0] if gather else permutation.rows
    rows, stride = require_rows("x", x, BF16, (source, k), device, _ALIGN)
    matrices = require("weight", weight, dtype, (permutation.counts.shape[0], n, k), device, _ALIGN)
    added = None if bias is None else require("bias", bias, BF16, (experts, n), device, _ALIGN)
    y = torch.empty(permutation.rows, n if activation is None else n // 2, dtype=BF16, device=x.device)
    arguments = Grouped(
        y=y.data_ptr(), x=rows, w=matrices, bias=added, sources=permutation.sources.data_ptr() if gather else None,
        tiles=permutation.tiles.data_ptr(), tile_count=permutation.tile_count.data_ptr(), n=n, k=k, x_stride=stride,
        max_tiles=permutation.tiles.shape[0], tile_rows=permutation.tile_rows,
        activation=-1 if activation is None else ACTIVATIONS[activation],
    )  # fmt: skip
    return arguments, y
