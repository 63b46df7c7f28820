"""e4m3 codes and scales in plain torch: what `fp8` computes on a GPU, on any device, and how weights become codes.

A value is code · scale. Codes are `torch.float8_e4m3fn`; scales float32, in one of three layouts (`Scaling`):

- `tensor`: `[1]`;
- `rows`: `[rows]`;
- `blocks`: of activations one for 128 elements of a row, `[size / 128, rows]`, its rows a multiple of 16 bytes apart;
  of weights one for 128 × 128 elements, `[ceil(outputs / 128), ceil(inputs / 128)]` (DeepSeek-V3, arXiv 2412.19437).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from engine.ops.cuda.tensors import refuse

Scaling = Literal["tensor", "rows", "blocks"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
BLOCK = 128
LARGEST = 448.0
LEAST_MAGNITUDE = 1e-10
"""Of what a scale stands for: so that 448 over it is finite."""


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """Codes `[rows, size]` and their scales. Raises SpliceError for a scaling there is not."""

    codes: torch.Tensor
    scales: torch.Tensor
    scaling: Scaling

    def __len__(self) -> int:
        """Rows."""
        return self.codes.shape[0]

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise refuse("scaling", repr(self.scaling), f"one of {', '.join(SCALINGS)}")


def empty_block_scales(rows: int, size: int, device: torch.device) -> torch.Tensor:
    """`[size / 128, rows]` float32, not yet written; its rows are a multiple of 16 bytes apart, for the copy engine."""
    return torch.empty(size // BLOCK, (rows + 3) // 4 * 4, dtype=torch.float32, device=device)[:, :rows]


def to_codes(wide: torch.Tensor) -> torch.Tensor:
    """float32 rounded to nearest even and held within ±448; NaN stays NaN."""
    return wide.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def scales_of(largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of largest magnitudes: the scales, and what values are multiplied with to become codes.

    Each is one rounded quotient: with a plain number for 448 torch would multiply with a rounded inverse.
    """
    largest = largest.clamp_min(LEAST_MAGNITUDE)
    most = torch.full_like(largest, LARGEST)
    return largest / most, most / largest


def quantise_rows(x: torch.Tensor, scaling: Scaling, scale: torch.Tensor | None = None) -> Fp8Matrix:
    """`x` `[rows, size]`; `scale` `[1]` of `tensor` is given, the others are the largest magnitude over 448."""
    wide = x.float()
    if scaling == "tensor":
        if scale is None:
            raise refuse("scale", "missing", "one with scaling 'tensor'")
        return Fp8Matrix(to_codes(wide * scale.reciprocal()), scale, scaling)
    if scaling == "rows":
        scales, factors = scales_of(wide.abs().amax(-1))
        return Fp8Matrix(to_codes(wide * factors[:, None]), scales, scaling)
    rows, size = x.shape
    parts = wide.view(rows, size // BLOCK, BLOCK)
    found, factors = scales_of(parts.abs().amax(-1))
    scales = empty_block_scales(rows, size, x.device)
    scales.copy_(found.t())
    return Fp8Matrix(to_codes(parts * factors[..., None]).view(rows, size), scales, scaling)


def quantise_weight(weight: torch.Tensor, scaling: Scaling) -> Fp8Matrix:
    """`weight` `[outputs, inputs]`, any float dtype; every scale is of the largest magnitude it stands for."""
    wide = weight.float()
    outputs, inputs = weight.shape
    if scaling == "tensor":
        scales, factors = scales_of(wide.abs().amax().view(1))
        return Fp8Matrix(to_codes(wide * factors), scales, scaling)
    if scaling == "rows":
        return quantise_rows(wide, scaling)
    down, across = -(-outputs // BLOCK), -(-inputs // BLOCK)
    padded = wide.new_zeros(down * BLOCK, across * BLOCK)
    padded[:outputs, :inputs] = wide
    scales, factors = scales_of(padded.view(down, BLOCK, across, BLOCK).abs().amax((1, 3)))
    spread = factors.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:outputs, :inputs]
    return Fp8Matrix(to_codes(wide * spread), scales, scaling)


def activation_values(x: Fp8Matrix) -> torch.Tensor:
    """What quantised rows stand for, float64 `[rows, size]`."""
    codes = x.codes.double()
    if x.scaling == "blocks":
        return codes * x.scales.double().t().repeat_interleave(BLOCK, 1)
    return codes * x.scales.double()[:, None]


def weight_values(weight: Fp8Matrix) -> torch.Tensor:
    """What a quantised weight stands for, float64 `[outputs, inputs]`."""
    codes = weight.codes.double()
    if weight.scaling != "blocks":
        return codes * weight.scales.double()[:, None]
    outputs, inputs = codes.shape
    spread = weight.scales.double().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return codes * spread[:outputs, :inputs]
