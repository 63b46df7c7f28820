"""Norms and gates by rows. Run in Triton's interpreter; not yet run on a GPU.

Bytes and operations are those of csrc/cuda/norm.cu and gate.cu: bound by memory. A norm's program holds one row in
registers, padded with zeros to a power of two, and its sum is Triton's tree over that: an order that the row's size
alone decides. A gate's program does a stretch of one row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.ops.cuda.tensors import refuse, require, require_rows

MAX_SIZE = 32768
_STRETCH = 1024
_BF16 = torch.bfloat16


@triton.jit
def _add_norm_rows(x, x_stride, residual, weight, y, size, eps, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED)
    inside = at < size
    before = tl.load(residual + row * size + at, mask=inside, other=0.0).to(tl.float32)
    total = (tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32) + before).to(tl.bfloat16)
    tl.store(residual + row * size + at, total, mask=inside)
    wide = total.to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, axis=0) / size + eps)
    quotient = (wide * inverse).to(tl.bfloat16).to(tl.float32)
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * size + at, (quotient * scale).to(tl.bfloat16), mask=inside)


@triton.jit
def _silu_mul_rows(gate_up, stride, y, size, STRETCH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * STRETCH + tl.arange(0, STRETCH)
    inside = at < size
    gate = tl.load(gate_up + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + size + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * size + at, (gate / (1.0 + tl.exp(-gate)) * up).to(tl.bfloat16), mask=inside)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `signatures.AddRmsNormOp`; all bfloat16, `residual` `[M, H]` is contiguous and is updated in place, H is at
    most 32768."""
    device = x.device.type
    _, stride = require_rows("x", x, _BF16, (None, None), device)
    rows, size = x.shape
    require("residual", residual, _BF16, (rows, size), device)
    require("weight", weight, _BF16, (size,), device)
    if not 0 < size <= MAX_SIZE:
        raise refuse("x", f"of {size} columns", f"1 to {MAX_SIZE}")
    y = torch.empty(rows, size, dtype=_BF16, device=x.device)
    if rows:
        padded = triton.next_power_of_2(size)
        _add_norm_rows[(rows,)](x, stride, residual, weight, y, size, eps, PADDED=padded, num_warps=_warps(padded))
    return y, residual


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `signatures.GatedMulOp`; bfloat16 `[M, 2·I]`, SwiGLU alone."""
    _, stride = require_rows("gate_up", gate_up, _BF16, (None, None), gate_up.device.type)
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    if gate_up.shape[1] % 2:
        raise refuse("gate_up", f"of {gate_up.shape[1]} columns", "an even number")
    y = torch.empty(rows, size, dtype=_BF16, device=gate_up.device)
    if rows and size:
        _silu_mul_rows[(rows, triton.cdiv(size, _STRETCH))](gate_up, stride, y, size, STRETCH=_STRETCH, num_warps=4)
    return y


def _warps(padded: int) -> int:
    """Of the row's size alone, so that the order of its sum is too."""
    return max(1, min(16, padded // 512))
