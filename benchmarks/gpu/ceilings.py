"""What this machine can do at best, by the plainest means there are: the denominators of every share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.gpu.timing import seconds_of


@dataclass(frozen=True, slots=True)
class Ceilings:
    copy_bytes_per_s: float
    """Bytes read plus bytes written by a copy many times the cache."""
    bf16_flop_per_s: float
    """Of an 8192×8192×8192 product of random numbers through torch."""


def measure() -> Ceilings:
    """Takes two seconds."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    copy = seconds_of([lambda: target.copy_(source)])
    moved = 2 * source.numel() * source.element_size()
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    multiply = seconds_of([lambda: torch.mm(a, b, out=product)])
    return Ceilings(moved / copy, 2 * size**3 / multiply)
