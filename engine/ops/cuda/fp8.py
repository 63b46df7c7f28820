"""FP8 (e4m3): activations to codes, alone or in one kernel with what makes them, and products of codes.

Layouts of codes and scales are those of `fp8_reference`, which is also the plain-torch reference of everything here.
"""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p
from typing import Literal

import torch

from engine.ops.cuda.fp8_reference import BLOCK, SCALINGS, Fp8Matrix, Scaling, empty_block_scales
from engine.ops.cuda.library import Library
from engine.ops.cuda.rows import ACTIVATIONS
from engine.ops.cuda.structs import Gate, Norm
from engine.ops.cuda.tensors import refuse, require, require_rows
from engine.spec import Activation

E4M3 = torch.float8_e4m3fn
Fp8Kernel = Literal["gemm_fp8_sm90", "gemm_fp8_blocks_sm90", "gemm_fp8_weights"]
FP8_TILES: dict[Fp8Kernel, int] = {"gemm_fp8_sm90": 4, "gemm_fp8_blocks_sm90": 2, "gemm_fp8_weights": 2}
"""How many tiles each has to choose among."""
_ALIGN = 16


class Codes(Structure):
    _fields_ = (("codes", c_void_p), ("scales", c_void_p), ("scale_stride", c_int64), ("scaling", c_int32))


class Quantise(Structure):
    _fields_ = (("to", Codes), ("x", c_void_p), *((name, c_int64) for name in ("rows", "size", "x_stride")))


class NormCodes(Structure):
    _fields_ = (("norm", Norm), ("to", Codes))


class GateCodes(Structure):
    _fields_ = (("gate", Gate), ("to", Codes))


class GemmFp8(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("y", "x", "w", "bias", "x_scales", "w_scales")),
        *((name, c_int64) for name in ("m", "n", "k", "x_stride", "w_stride", "y_stride", "x_scale_stride")),
        *((name, c_int32) for name in ("x_scaling", "w_scaling", "tile")),
    )


def quantise_rows(library: Library, x: torch.Tensor, scaling: Scaling, scale: torch.Tensor | None = None) -> Fp8Matrix:
    """`x` bfloat16 `[M, K]`, rows perhaps strided, K a multiple of 16 (of 128 with `blocks`) and at most 32768.

    `scale` `[1]` float32 goes with `tensor` and with nothing else. Raises SpliceError that names the argument.
    """
    address, stride = require_rows("x", x, torch.bfloat16, (None, None), library.device_type, _ALIGN)
    codes, to = room_for_codes(library, x.shape[0], x.shape[1], scaling, scale, x.device)
    library.call("quantise_fp8", Quantise(to, address, x.shape[0], x.shape[1], stride))
    return codes


def rms_norm_fp8(
    library: Library,
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    scaling: Scaling,
    *,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
) -> Fp8Matrix:
    """`quantise_rows` of `rows.rms_norm`, or with a residual, which is updated in place, of `rows.add_rms_norm`: the
    same bits. Where `y` is given, the norm itself is written there."""
    device = library.device_type
    address, stride = require_rows("x", x, torch.bfloat16, (None, None), device, _ALIGN)
    rows, size = x.shape
    before = None if residual is None else require("residual", residual, torch.bfloat16, (rows, size), device, _ALIGN)
    is_float32 = weight.dtype == torch.float32
    factor = require("weight", weight, torch.float32 if is_float32 else torch.bfloat16, (size,), device, _ALIGN)
    codes, to = room_for_codes(library, rows, size, scaling, scale, x.device)
    norm = Norm(_also(library, y, rows, size), address, before, factor, rows, size, stride, is_float32, eps)
    library.call("rms_norm_fp8", NormCodes(norm, to))
    return codes


def gated_mul_fp8(
    library: Library,
    gate_up: torch.Tensor,
    activation: Activation,
    scaling: Scaling,
    *,
    scale: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
) -> Fp8Matrix:
    """`quantise_rows` of `rows.gated_mul`: the same bits. Where `y` is given, what was gated is written there."""
    if activation not in ACTIVATIONS:
        raise refuse("activation", repr(activation), f"one of {', '.join(ACTIVATIONS)}")
    address, stride = require_rows("gate_up", gate_up, torch.bfloat16, (None, None), library.device_type, _ALIGN)
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    codes, to = room_for_codes(library, rows, size, scaling, scale, gate_up.device)
    gate = Gate(_also(library, y, rows, size), address, rows, size, stride, ACTIVATIONS[activation])
    library.call("gated_mul_fp8", GateCodes(gate, to))
    return codes


def gemm_fp8(
    library: Library, x: Fp8Matrix, weight: Fp8Matrix, bias: torch.Tensor | None = None, *, tile: int
) -> torch.Tensor:
    """`x` `[M, K]` times the transposed `weight` `[N, K]`, plus `bias` `[N]`: `[M, N]` bfloat16, on Hopper alone.

    K is a multiple of 16, N of 8. Scales are of blocks in both, or of tensors or rows in each. Tiles 0 (few rows) and 1
    (many) give the same bits; so do 2 and 3 (many, without blocks), which sum faster and less exactly."""
    both = {x.scaling, weight.scaling}
    if "blocks" in both and len(both) > 1:
        raise refuse("weight", f"scaled by {weight.scaling}", f"scales of blocks in both or neither, x has {x.scaling}")
    kernel: Fp8Kernel = "gemm_fp8_blocks_sm90" if x.scaling == "blocks" else "gemm_fp8_sm90"
    arguments, y = _product(library, x.codes, E4M3, weight, bias, tile)
    scales, scale_stride = _activation_scales(library, x)
    arguments.x_scales, arguments.x_scale_stride, arguments.x_scaling = scales, scale_stride, SCALINGS.index(x.scaling)
    library.call(kernel, arguments)
    return y


def gemm_fp8_weights(
    library: Library, x: torch.Tensor, weight: Fp8Matrix, bias: torch.Tensor | None = None, *, tile: int
) -> torch.Tensor:
    """As `gemm_fp8`, with `x` bfloat16 as it is and any scaling of `weight`, on Ampere and newer."""
    arguments, y = _product(library, x, torch.bfloat16, weight, bias, tile)
    library.call("gemm_fp8_weights", arguments)
    return y


def _also(library: Library, y: torch.Tensor | None, rows: int, size: int) -> int | None:
    return None if y is None else require("y", y, torch.bfloat16, (rows, size), library.device_type, _ALIGN)


def room_for_codes(
    library: Library, rows: int, size: int, scaling: Scaling, scale: torch.Tensor | None, device: torch.device
) -> tuple[Fp8Matrix, Codes]:
    """Where codes and scales go. Raises SpliceError that names the argument."""
    if scaling not in SCALINGS:
        raise refuse("scaling", repr(scaling), f"one of {', '.join(SCALINGS)}")
    if (scale is not None) != (scaling == "tensor"):
        raise refuse("scale", "given" if scale is not None else "missing", "one with scaling 'tensor', and only there")
    if scaling == "blocks" and size % BLOCK:
        raise refuse("x", f"of {size} columns", f"a multiple of {BLOCK} with scaling 'blocks'")
    codes, stride = torch.empty(rows, size, dtype=E4M3, device=device), 0
    if scale is not None:
        require("scale", scale, torch.float32, (1,), library.device_type)
        scales = scale
    elif scaling == "rows":
        scales = torch.empty(rows, dtype=torch.float32, device=device)
    else:
        scales = empty_block_scales(rows, size, device)
        stride = scales.stride(0) if rows else 4
    to = Codes(codes.data_ptr(), scales.data_ptr(), stride, SCALINGS.index(scaling))
    return Fp8Matrix(codes, scales, scaling), to


def _activation_scales(library: Library, x: Fp8Matrix) -> tuple[int, int]:
    """Their address, and the elements from one block of 128 columns to the next."""
    m, k = x.codes.shape
    if x.scaling != "blocks":
        shape = (1 if x.scaling == "tensor" else m,)
        return require("x_scales", x.scales, torch.float32, shape, library.device_type), 0
    # For `require_rows` a single row is as long as it has elements; the copy engine asks for the padded length.
    address, _ = require_rows("x_scales", x.scales, torch.float32, (-(-k // BLOCK), m), library.device_type)
    stride = x.scales.stride(0) if m else 4
    if stride % 4 or stride < m or address % _ALIGN:
        raise refuse("x_scales", f"{stride} elements from row to row at {address:#x}", "multiples of 16 bytes")
    return address, stride


def _product(
    library: Library, x: torch.Tensor, dtype: torch.dtype, weight: Fp8Matrix, bias: torch.Tensor | None, tile: int
) -> tuple[GemmFp8, torch.Tensor]:
    """Arguments of a product but for x's scales, and its result."""
    device = library.device_type
    matrix, stride = require_rows("weight", weight.codes, E4M3, (None, None), device, _ALIGN)
    n, k = weight.codes.shape
    rows, x_stride = require_rows("x", x, dtype, (None, k), device, _ALIGN)
    shape = {"tensor": (1,), "rows": (n,), "blocks": (-(-n // BLOCK), -(-k // BLOCK))}[weight.scaling]
    scales = require("w_scales", weight.scales, torch.float32, shape, device)
    added = None if bias is None else require("bias", bias, torch.bfloat16, (n,), device, _ALIGN)
    y = torch.empty(x.shape[0], n, dtype=torch.bfloat16, device=x.device)
    arguments = GemmFp8(
        y=y.data_ptr(), x=rows, w=matrix, bias=added, w_scales=scales, m=x.shape[0], n=n, k=k, x_stride=x_stride,
        w_stride=stride, y_stride=n, w_scaling=SCALINGS.index(weight.scaling), tile=tile,
    )  # fmt: skip
    return arguments, y
