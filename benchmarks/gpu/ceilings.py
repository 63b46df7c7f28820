"""What this machine can do at best, by the plainest means there are: the denominators of every share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.gpu.timing import seconds_of

Precision = Literal["bf16", "fp8"]
_SIZE = 8192
_COPIED_FLOATS = 1 << 29
_FIRST_WITH_FP8 = (8, 9)


@dataclass(frozen=True, slots=True)
class Ceilings:
    copy_bytes_per_s: float
    """Bytes read plus bytes written by a copy many times the cache."""
    bf16_flop_per_s: float
    """Of an 8192×8192×8192 product of random numbers through torch."""
    fp8_flop_per_s: float = 0.0
    """The same in float8_e4m3fn with one scale a tensor and sums that give way to speed; 0 where the GPU has none."""

    def flop_per_s(self, precision: Precision) -> float:
        """The rate that operations of this precision are a share of: that of bfloat16 where it was not measured."""
        return (self.fp8_flop_per_s if precision == "fp8" else 0.0) or self.bf16_flop_per_s


def measure() -> Ceilings:
    """Takes three seconds."""
    source = torch.randn(_COPIED_FLOATS, device="cuda")
    target = torch.empty_like(source)
    copy = seconds_of([lambda: target.copy_(source)])
    moved = 2 * source.numel() * source.element_size()
    a, b = (torch.randn(_SIZE, _SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    multiply = seconds_of([lambda: torch.mm(a, b, out=product)])
    return Ceilings(moved / copy, 2 * _SIZE**3 / multiply, _fp8_rate(a, b))


def _fp8_rate(a: torch.Tensor, b: torch.Tensor) -> float:
    if torch.cuda.get_device_capability() < _FIRST_WITH_FP8:
        return 0.0
    x, weight = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device="cuda")
    seconds = seconds_of(
        [lambda: torch._scaled_mm(x, weight, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)]
    )
    return 2 * _SIZE**3 / seconds
