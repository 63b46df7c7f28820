"""Rotary embedding tables."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

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

Floats = npt.NDArray[np.float32]


def cos_sin_table(rope: RopeSpec | None, head_dim: int, num_positions: int) -> Floats:
    """float32 `[num_positions, R]`, R dimensions of a head turning: cosines in the first half of the columns, sines in
    the second.

    Angles are float32 products, as models are trained with. Powers, cosines and sines are taken in float64 and
    rounded, so that they do not depend on a vector loop's tail or on a library's float32 approximations.
    """
    if rope is None:
        return np.empty((num_positions, 0), dtype=np.float32)
    angles = np.outer(np.arange(num_positions, dtype=np.float32), inverse_frequencies(rope, head_dim)).astype(
        np.float64
    )
    scaling = rope.scaling
    factor = scaling.attention_factor if isinstance(scaling, FactorRopeScaling | YarnRopeScaling) else 1.0
    return (np.concatenate((np.cos(angles), np.sin(angles)), axis=1) * factor).astype(np.float32)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Floats:
    """float32 `[R / 2]`, radians per position, of a rope for one length (see `RopeSpec.served`)."""
    turning = rope.dim(head_dim)
    exponents = np.arange(0, turning, 2, dtype=np.float64) / turning
    return _scaled((1.0 / np.power(rope.theta, exponents)).astype(np.float32), rope.scaling, rope.theta, turning)


def _scaled(frequencies: Floats, scaling: RopeScaling | None, theta: float, turning: int) -> Floats:
    match scaling:
        case None:
            return frequencies
        case LinearRopeScaling(factor):
            return frequencies / np.float32(factor)
        case FactorRopeScaling(factors):
            divisors: Floats = np.array(factors, dtype=np.float32)
            return frequencies / divisors
        case Llama3RopeScaling():
            return _llama3(frequencies, scaling)
        case YarnRopeScaling():
            return _yarn(frequencies, scaling, theta, turning)
        case DynamicRopeScaling() | LongRopeScaling():
            raise ValueError(f"{type(scaling).__name__} depends on the served length: take `RopeSpec.served` first")


def _yarn(frequencies: Floats, scaling: YarnRopeScaling, theta: float, turning: int) -> Floats:
    def dimension(turns: float) -> float:
        """The pair that turns so many times in the original context."""
        return turning * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turning - 1)
    if low == high:
        high += 0.001  # a step, as the paper's code has it, and no division by zero
    pairs = np.arange(turning // 2, dtype=np.float32)
    ramp = ((pairs - np.float32(low)) / np.float32(high - low)).clip(0.0, 1.0)
    blended: Floats = frequencies / np.float32(scaling.factor) * ramp + frequencies * (1 - ramp)
    return blended


def _llama3(frequencies: Floats, scaling: Llama3RopeScaling) -> Floats:
    wavelengths: Floats = np.float32(2 * math.pi) / frequencies
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    factor = np.float32(scaling.factor)
    ramp = ((np.float32(scaling.original_max_positions) / wavelengths - low) / (high - low)).clip(0.0, 1.0)
    # The end points are taken exactly: the ramp's own arithmetic would round them.
    blended = (1 - ramp) * frequencies / factor + ramp * frequencies
    slow = np.where(ramp == 0.0, frequencies / factor, blended)
    kept: Floats = np.asarray(np.where(ramp == 1.0, frequencies, slow), dtype=np.float32)
    return kept
