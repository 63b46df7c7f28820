"""How near a kernel's result is to the exact one."""

from __future__ import annotations

import torch


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """‖found − exact‖ / ‖exact‖ in float64; NaN where any of `found` is."""
    wide, exact = found.double().cpu(), exact.double().cpu()
    assert wide.shape == exact.shape
    return float((wide - exact).norm() / exact.norm().clamp_min(1e-300))


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool((bits(one) == bits(other)).all())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Elements as integers of their size."""
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.element_size()])
