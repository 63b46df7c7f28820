"""Matrix products in bfloat16 with float32 sums, one chain over k per output."""

from __future__ import annotations

from typing import Literal

import torch

from engine.ops.cuda.cache import BF16
from engine.ops.cuda.library import Library
from engine.ops.cuda.structs import Gemm
from engine.ops.cuda.tensors import refuse, require, require_rows

GemmKernel = Literal["gemm_sm80", "gemm_sm90"]
TILES: dict[GemmKernel, int] = {"gemm_sm80": 2, "gemm_sm90": 3}
"""How many tiles each has to choose among."""
_ALIGN = 16


def gemm(
    library: Library,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    kernel: GemmKernel,
    tile: int,
    out_dtype: torch.dtype = BF16,
) -> torch.Tensor:
    """`x` `[M, K]`, rows perhaps strided, times the transposed `weight` `[N, K]`, plus `bias` `[N]`: `[M, N]` bfloat16
    or float32. K and N are multiples of 8. `gemm_sm90` runs on Hopper alone, its tiles 1 and 2 to bfloat16 alone."""
    if out_dtype not in (BF16, torch.float32):
        raise refuse("out_dtype", out_dtype, "torch.bfloat16 or torch.float32")
    device = library.device_type
    n, k = weight.shape
    rows, stride = require_rows("x", x, BF16, (None, k), device, _ALIGN)
    matrix, weight_stride = require_rows("weight", weight, BF16, (n, k), device, _ALIGN)
    added = None if bias is None else require("bias", bias, BF16, (n,), device, _ALIGN)
    y = torch.empty(x.shape[0], n, dtype=out_dtype, device=x.device)
    arguments = Gemm(
        y=y.data_ptr(), x=rows, w=matrix, bias=added, m=x.shape[0], n=n, k=k, x_stride=stride,
        w_stride=weight_stride, y_stride=n, y_is_float32=out_dtype == torch.float32, tile=tile,
    )  # fmt: skip
    library.call(kernel, arguments)
    return y
