"""Rotary embedding tables."""

from __future__ import annotations

import math

import torch

from engine.rope_spec import (
    DynamicRopeScaling,
    FactorRopeScaling,
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    RopeScaling,
    RopeSpec,
    YarnRopeScaling,
)


class RopeTables:
    """The tables of a model, one for all layers that turn alike."""

    def __init__(self, num_positions: int) -> None:
        self._num_positions = num_positions
        self._tables: dict[tuple[RopeSpec | None, int], torch.Tensor] = {}

    def table(self, rope: RopeSpec | None, head_dim: int) -> torch.Tensor:
        """See `cos_sin_table`."""
        key = (rope, head_dim)
        if key not in self._tables:
            self._tables[key] = cos_sin_table(rope, head_dim, self._num_positions)
        return self._tables[key]


def cos_sin_table(rope: RopeSpec | None, head_dim: int, num_positions: int) -> torch.Tensor:
    """float32 `[num_positions, R]`, R dimensions of a head turning: cosines in the first half of the columns, sines in
    the second.

    Angles are float32 products, as models are trained with. Cosine and sine are taken in float64 and rounded, so that
    a row does not depend on the table's length through a vector loop's tail.
    """
    if rope is None:
        return torch.empty(num_positions, 0)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), inverse_frequencies(rope, head_dim)).double()
    scaling = rope.scaling
    factor = scaling.attention_factor if isinstance(scaling, FactorRopeScaling | YarnRopeScaling) else 1.0
    return (torch.cat((angles.cos(), angles.sin()), dim=1) * factor).float()


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> torch.Tensor:
    """float32 `[R / 2]`, radians per position, of a rope for one length (see `RopeSpec.served`)."""
    turning = rope.dim(head_dim)
    exponents = torch.arange(0, turning, 2, dtype=torch.int64).float() / turning
    return _scaled(1.0 / rope.theta**exponents, rope.scaling, rope.theta, turning)


def _scaled(frequencies: torch.Tensor, scaling: RopeScaling | None, theta: float, turning: int) -> torch.Tensor:
    match scaling:
        case None:
            return frequencies
        case LinearRopeScaling(factor):
            return frequencies / factor
        case FactorRopeScaling(factors):
            return frequencies / torch.tensor(factors, dtype=torch.float32)
        case Llama3RopeScaling():
            return _llama3(frequencies, scaling)
        case YarnRopeScaling():
            return _yarn(frequencies, scaling, theta, turning)
        case DynamicRopeScaling() | LongRopeScaling():
            raise ValueError(f"{type(scaling).__name__} depends on the served length: take `RopeSpec.served` first")


def _yarn(frequencies: torch.Tensor, scaling: YarnRopeScaling, theta: float, turning: int) -> torch.Tensor:
    def dimension(turns: float) -> float:
        """The pair that turns so many times in the original context."""
        return turning * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turning - 1)
    if low == high:
        high += 0.001  # a step, as the paper's code has it, and no division by zero
    ramp = ((torch.arange(turning // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)


def _llama3(frequencies: torch.Tensor, scaling: Llama3RopeScaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    ramp = ((scaling.original_max_positions / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    # The end points are taken exactly: the ramp's own arithmetic would round them.
    blended = (1 - ramp) * frequencies / scaling.factor + ramp * frequencies
    slow = torch.where(ramp == 0.0, frequencies / scaling.factor, blended)
    return torch.where(ramp == 1.0, frequencies, slow)
