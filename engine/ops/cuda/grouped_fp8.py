"""Products of each expert's rows with its own weights, both in e4m3 codes, on Hopper; and tokens as codes in the order
of experts."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from typing import Protocol

import torch

from engine.ops.cuda.fp8 import E4M3, Codes, room_for_codes
from engine.ops.cuda.fp8_reference import BLOCK, Fp8Matrix, Scaling
from engine.ops.cuda.grouped_fp8_weights import Fp8Stack
from engine.ops.cuda.grouped_sm90 import GroupedSm90, Scales, grouped_gemm_sm90, sm90_product, workspace_for
from engine.ops.cuda.library import Library
from engine.ops.cuda.permutation import Permutation
from engine.ops.cuda.tensors import refuse, require, require_rows

GROUPED_FP8 = ("gather_fp8", "grouped_fp8_gemm", "grouped_fp8_blocks_gemm")
"""What a library needs for experts whose rows are codes."""
_ALIGN = 16


class GatheredCodes(Structure):
    """`splice_cuda_gathered_codes` of `csrc/cuda/splice_cuda.h`."""

    _fields_ = (
        ("to", Codes),
        *((name, c_void_p) for name in ("x", "places")),
        *((name, c_int64) for name in ("tokens", "top_k", "size", "x_stride", "rows")),
    )


class GroupedBlocks(Structure):
    """`splice_cuda_grouped_blocks`."""

    _fields_ = (("product", GroupedSm90), ("x_scale_stride", c_int64))


class ProductOfGroups(Protocol):
    def __call__(
        self, library: Library, x: Fp8Matrix, weight: Fp8Stack, permutation: Permutation, *, tile: int
    ) -> torch.Tensor:
        """See `grouped_fp8`."""


def gather_codes(library: Library, x: torch.Tensor, permutation: Permutation, scaling: Scaling) -> Fp8Matrix:
    """`fp8.quantise_rows` of `x` `[M, size]` bfloat16, rows perhaps strided, in the permutation's order: `[rows,
    size]`, with scales of `rows` or `blocks`. Rows that no choice fills are not written."""
    if scaling == "tensor":
        raise refuse("scaling", repr(scaling), "'rows' or 'blocks'")
    tokens, top_k = permutation.places.shape
    address, stride = require_rows("x", x, torch.bfloat16, (tokens, None), library.device_type, _ALIGN)
    size = x.shape[1]
    codes, to = room_for_codes(library, permutation.rows, size, scaling, None, x.device)
    places = permutation.places.data_ptr()
    library.call("gather_fp8", GatheredCodes(to, address, places, tokens, top_k, size, stride, permutation.rows))
    return codes


def grouped_fp8(
    library: Library, x: Fp8Matrix, weight: Fp8Stack, permutation: Permutation, *, tile: int
) -> torch.Tensor:
    """As `grouped_sm90.grouped_gemm_sm90`: `[rows, N]` bfloat16. Scales of both are of rows, or of blocks.

    K is a multiple of 16 and N of 8; with blocks K is one of 128, and parts that were stacked end where a block does.
    """
    if x.scaling != weight.scaling:
        raise refuse("x", f"scaled by {x.scaling}", f"scales of {weight.scaling}, as the weight has them")
    if weight.scaling == "rows":
        scales = Scales(x.scales, weight.scales)
        return grouped_gemm_sm90(library, x.codes, weight.codes, permutation, scales, tile=tile)
    experts, n, k = weight.codes.shape
    if k % BLOCK:
        raise refuse("weight", f"of rows of {k} elements", f"a multiple of {BLOCK} with scales of blocks")
    device, blocks = library.device_type, k // BLOCK
    product, y = sm90_product(library, x.codes, weight.codes, E4M3, permutation, tile)
    rows = permutation.rows
    product.x_scales, _ = require_rows("x.scales", x.scales, torch.float32, (blocks, rows), device)
    shape = (experts, -(-n // BLOCK), blocks)
    product.w_scales = require("weight.scales", weight.scales, torch.float32, shape, device, _ALIGN)
    if rows:
        workspace = workspace_for(library, "grouped_fp8_blocks", experts, y.device)
        product.workspace = workspace.data_ptr()
        library.call("grouped_fp8_blocks_gemm", GroupedBlocks(product, x.scales.stride(0)))
    return y
