"""Operations of rows by themselves: norms and gates."""

from __future__ import annotations

import torch

from engine.ops.cuda.library import Library
from engine.ops.cuda.structs import Gate, Norm
from engine.ops.cuda.tensors import refuse, require, require_rows
from engine.spec import Activation

ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1, "swiglu_oai": 2}
"""Of `csrc/cuda/splice_cuda.h`."""
_ALIGN = 16


def rms_norm(library: Library, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `signatures.RmsNormOp`; x bfloat16 `[M, H]`, rows perhaps strided, H a multiple of 8; weight bfloat16 or
    float32."""
    return _norm(library, x, None, weight, eps)


def add_rms_norm(
    library: Library, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `signatures.AddRmsNormOp`; `residual` is contiguous and is updated in place."""
    return _norm(library, x, residual, weight, eps), residual


def gated_mul(library: Library, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """See `signatures.GatedMulOp`; bfloat16, I a multiple of 8."""
    if activation not in ACTIVATIONS:
        raise refuse("activation", repr(activation), f"one of {', '.join(ACTIVATIONS)}")
    device = library.device_type
    address, stride = require_rows("gate_up", gate_up, torch.bfloat16, (None, None), device, _ALIGN)
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=torch.bfloat16, device=gate_up.device)
    library.call("gated_mul", Gate(out.data_ptr(), address, rows, size, stride, ACTIVATIONS[activation]))
    return out


def _norm(
    library: Library, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    device = library.device_type
    address, stride = require_rows("x", x, torch.bfloat16, (None, None), device, _ALIGN)
    rows, size = x.shape
    before = None if residual is None else require("residual", residual, torch.bfloat16, (rows, size), device, _ALIGN)
    is_float32 = weight.dtype == torch.float32
    wanted = torch.float32 if is_float32 else torch.bfloat16
    scale = require("weight", weight, wanted, (size,), device, _ALIGN)
    out = torch.empty(rows, size, dtype=torch.bfloat16, device=x.device)
    library.call("rms_norm", Norm(out.data_ptr(), address, before, scale, rows, size, stride, is_float32, eps))
    return out
