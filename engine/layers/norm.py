"""Weights of RMS norms."""

from __future__ import annotations

import torch

from engine.layers.weights import Weights


def take_norm(weights: Weights, name: str, size: int, offset: float) -> torch.Tensor:
    """The norm `name` of `[size]`, ready for the operation."""
    return with_offset(weights.take(name, (size,)), offset)


def with_offset(stored: torch.Tensor, offset: float) -> torch.Tensor:
    """The weight as stored, or in float32 with the offset added: a narrower type could not hold the sum."""
    return stored.float() + offset if offset else stored
